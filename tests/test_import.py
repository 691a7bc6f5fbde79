"""`import v1lit` is quick because it loads next to nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import v1lit

pytestmark = pytest.mark.dependencies

HEAVY = {
    *("torch", "lightning", "lightning_utilities", "transformers", "torchmetrics", "torchvision", "timm"),
    *(
        "jsonargparse",
        "omegaconf",
        "webdataset",
        "pyarrow",
        "numpy",
        "PIL",
        "rich",
        "tensorboard",
        "huggingface_hub",
    ),
}


def loaded_by(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after a statement."""
    code = f"{statement}; import sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_v1lit_loads_no_dependency() -> None:
    loaded = loaded_by("import v1lit")
    assert "v1lit" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    "names",
    [
        "BackboneConfig, PointerConfig, EncodingConfig, SourceConfig",
        "Region, PatchMap, Trace, Example, Message",
        "get_backbone, list_backbones, register_backbone",
    ],
)
def test_configs_regions_and_the_registry_come_without_torch(names: str) -> None:
    assert not loaded_by(f"from v1lit import {names}") & {
        "torch",
        "transformers",
        "lightning",
        "torchmetrics",
    }


def test_every_public_name_is_there_and_listed() -> None:
    for name in v1lit.__all__:
        assert getattr(v1lit, name) is not None
        assert name in dir(v1lit)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = v1lit.no_such_name


def test_type_checkers_see_the_same_names() -> None:
    """The names below TYPE_CHECKING and the lazy ones are written twice; here they are kept in step."""
    import ast
    from pathlib import Path

    tree = ast.parse(Path(v1lit.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.asname: node.module for node in imports for alias in node.names} == v1lit._MODULES
