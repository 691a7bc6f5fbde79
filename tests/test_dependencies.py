"""What the code imports is declared in pyproject.toml, and what is declared is imported."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from v1lit.cli.tried_versions import runs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it as well

ROOT = Path(__file__).resolve().parents[1]

DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "fla": "flash-linear-attention"}
"""Distribution of modules that are not called like it."""
BROUGHT = {
    "fastapi": "gradio",
    "triton": "torch",  # on the platforms that have it
}
"""Modules that come with what is declared, and cannot be there without it."""
RIVALS = {"megatron", "streaming", "liger-kernel"}
"""What `tools/bench` measures v1lit against, where it is installed."""
WHOLLY = {
    **{f"v1lit/serving/{name}.py": {"starlette"} for name in ("app", "events")},
    **{f"v1lit/demo/{name}.py": {"gradio"} for name in ("controls", "page", "panel", "picture_input")},
    "v1lit/demo/app.py": {"gradio", "starlette"},
    "v1lit/demo/server.py": {"starlette", "uvicorn"},
}
"""Files that are of an extra alone: they are imported where it is used."""
NOT_IMPORTED = {
    "tensorboard": "behind Lightning's logger, the second default one of a run",
}
"""Declared although no file imports it, with the reason."""


DATED = {"fsspec", "packaging"}
"""Their versions are dates: there is no next major one to stop before."""


def project() -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return content["project"]


def named(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


BASE = named(project()["dependencies"])
EXTRAS = {name: named(found) for name, found in project()["optional-dependencies"].items()}
OPTIONAL = set().union(*(found for name, found in EXTRAS.items() if name not in ("dev", "docs"))) - BASE


def imports(folder: str) -> Iterator[tuple[str, Path, bool]]:
    """Distribution, file and whether it is at the top of the file, of every import that is not of our own."""
    files = sorted((ROOT / folder).rglob("*.py"))
    # Tools find each other by the names of their files; v1lit is always written in full.
    own = {"v1lit", *(path.stem for path in files if folder == "tools")}
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for module in {name.partition(".")[0] for name in names} - own - set(sys.stdlib_module_names):
                yield canonicalize_name(DISTRIBUTIONS.get(module, module)), path, node in tree.body


def test_what_v1lit_imports_is_declared() -> None:
    for name, path, _ in imports("v1lit"):
        assert BROUGHT.get(name, name) in BASE | OPTIONAL, f"{path.relative_to(ROOT)} imports {name}"


def test_what_an_extra_brings_is_imported_where_it_is_used() -> None:
    for name, path, on_top in imports("v1lit"):
        wholly = name in WHOLLY.get(path.relative_to(ROOT).as_posix(), set())
        assert wholly or not (name in OPTIONAL and on_top), (
            f"{path.relative_to(ROOT)} cannot be imported without {name}"
        )


def test_what_the_tools_import_is_declared() -> None:
    known = BASE.union(RIVALS, *EXTRAS.values())
    for name, path, _ in imports("tools"):
        assert BROUGHT.get(name, name) in known, f"{path.relative_to(ROOT)} imports {name}"


def test_what_is_declared_is_imported_or_has_a_reason() -> None:
    imported = {name for name, _, _ in imports("v1lit")}
    assert BASE - imported == set(NOT_IMPORTED)


def test_every_dependency_has_a_lower_and_an_upper_bound() -> None:
    for text in project()["dependencies"]:
        requirement = Requirement(text)
        operators = {one.operator for one in requirement.specifier}
        bounds = {">="} if requirement.name in DATED else {">=", "<"}
        assert bounds <= operators, f"{text} needs {' and '.join(bounds)}"


def test_an_import_inside_a_function_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v1lit").mkdir()
    (tmp_path / "v1lit/a.py").write_text("import os, PIL.Image\ndef f():\n    from torch.nn import Linear\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert [(name, on_top) for name, _, on_top in imports("v1lit")] == [("pillow", True), ("torch", False)]


def test_the_lowest_allowed_version_of_each_dependency_was_tested() -> None:
    tested = runs()["oldest"]["versions"]
    for text in project()["dependencies"]:
        one = Requirement(text)
        lowest = [Version(bound.version) for bound in one.specifier if bound.operator == ">="]
        assert lowest == [Version(tested[one.name])], f"{text}: make test-oldest"
