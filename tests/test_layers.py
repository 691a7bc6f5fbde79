"""Imports point one way: what every package may import of the others, imports inside functions included."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "v1lit"

MAY_IMPORT = {
    "grounding": (),
    "revisit": ("grounding",),
    "backbones": ("revisit", "grounding"),
    "data": ("revisit", "grounding", "backbones.config", "backbones.processor"),
    "pointer": ("revisit", "backbones", "grounding"),
    "parallel": ("pointer", "backbones"),
    "steering": ("revisit", "backbones", "grounding"),
    "inference": ("steering", "revisit", "pointer", "data", "backbones", "grounding"),
    "serving": ("inference", "steering", "revisit", "pointer", "data", "backbones", "grounding"),
    "demo": ("serving", "inference", "steering", "data", "grounding"),
    # The report at the end of a run generates.
    "cluster": ("data",),
    "training": ("revisit", "cluster", "inference", "parallel", "pointer", "data", "backbones", "grounding"),
    "launch": (),
    "plan": ("revisit", "training", "parallel", "pointer", "data", "backbones", "grounding"),
    # Trials are processes; what they will cost is reckoned in this one.
    "sweep": ("launch", "plan", "revisit", "training", "pointer", "data", "backbones"),
    "cli": (
        "sweep",
        "plan",
        "launch",
        "training",
        "cluster",
        "demo",
        "serving",
        "inference",
        "steering",
        "parallel",
        "pointer",
        "data",
        "backbones",
        "revisit",
        "grounding",
        "__version__",
    ),
    # For authors of backbones; nothing of v1lit imports it.
    "testing": ("training", "inference", "pointer", "data", "backbones", "grounding"),
}
"""Package -> packages, or single modules, that it may import. Stated in docs/architecture.md as well."""
GROUND = {
    "autos": (),
    "console": (),
    "plugins": (),
    "errors": (),
    "files": (),
    "labels": (),
    "paths": ("errors",),
    "processes": ("console",),
}
"""Modules beside the packages that all but `grounding` may import, and what they import of v1lit."""

OUTSIDE_GROUNDING = {"numpy", "PIL"}
"""All that `grounding` may need: there is no neural network in it."""


def modules(package: str) -> list[Path]:
    return sorted((PACKAGE / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Full names of everything that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports of v1lit are written in full"
            module = node.module or ""
            # Of a package, the name may be a module; of a module, the module says it all.
            is_package = (PACKAGE.parent / module.replace(".", "/")).is_dir()
            yield from (f"{module}.{alias.name}" if is_package else module for alias in node.names)


def inside(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


def test_every_package_stands_in_the_table() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(MAY_IMPORT)


def test_the_table_has_no_circle() -> None:
    order: list[str] = []
    for package, others in MAY_IMPORT.items():
        assert all(other.partition(".")[0] in order or other == "__version__" for other in others), package
        order.append(package)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    allowed = (package, *MAY_IMPORT[package], *(GROUND if package != "grounding" else ()))
    found = modules(package)
    assert found
    for path in found:
        for name in imported(path):
            if inside(name, "v1lit"):
                own = name.removeprefix("v1lit").removeprefix(".")
                assert any(inside(own, one) for one in allowed), f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("module", GROUND)
def test_a_ground_module_imports_no_package_of_v1lit(module: str) -> None:
    own = {name for name in imported(PACKAGE / f"{module}.py") if inside(name, "v1lit")}
    assert own == {f"v1lit.{other}" for other in GROUND[module]}


def test_grounding_needs_numpy_and_pillow_only() -> None:
    for path in modules("grounding"):
        outside = (
            {name.partition(".")[0] for name in imported(path)} - set(sys.stdlib_module_names) - {"v1lit"}
        )
        assert outside <= OUTSIDE_GROUNDING, path


def test_imports_that_a_string_names_are_those_of_the_registries() -> None:
    """`import_module` would get around the table; these look up what is registered, or libraries."""
    users = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if "import_module" in path.read_text()
    ]
    assert sorted(users) == [
        "__init__.py",
        "autos.py",
        "backbones/attention_kernels.py",
        "backbones/classes.py",
        "backbones/registry.py",
        "cli/main.py",
        "data/encode/mapping.py",
        "data/formats/registry.py",
        "revisit/registry.py",
    ]


def test_an_import_inside_a_function_is_seen(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("def f():\n    from v1lit.cli import recipe\n    import v1lit.training.run\n")
    assert list(imported(module)) == ["v1lit.cli.recipe", "v1lit.training.run"]
