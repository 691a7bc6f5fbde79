"""Backbones are found by name, nothing is imported before it is asked for, and users add their own."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from v1lit import plugins
from v1lit.backbones import get_backbone, list_backbones, register_backbone, registry
from v1lit.backbones.contract import Backbone
from v1lit.backbones.qwen import Qwen25VL


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


def claim(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    """Pretend that installed packages declare these entry points."""
    declared = [EntryPoint(name, value, registry.ENTRY_POINT_GROUP) for name, value in points]
    monkeypatch.setattr(plugins, "_declared", lambda group, path: declared)


def python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_registry_imports_neither_torch_nor_transformers() -> None:
    python(
        "import sys; from v1lit.backbones.registry import list_backbones; assert len(list_backbones()) >= 4; "
        "assert not {'torch', 'transformers', 'v1lit.backbones.qwen'} & set(sys.modules)"
    )


def test_a_patch_map_needs_neither_torch_nor_transformers() -> None:
    python(
        "import sys; from v1lit.backbones import get_backbone, list_backbones\n"
        "for name in list_backbones():\n"
        "    assert len(get_backbone(name).patch_map(image_size=(640, 480)))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )


def test_lists_every_family() -> None:
    assert set(list_backbones()) <= set(list_backbones())


@pytest.mark.parametrize("name", list_backbones())
def test_every_family_knows_its_name(name: str) -> None:
    backbone = get_backbone(name)
    assert isinstance(backbone, Backbone)
    assert backbone.name == name


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'qwen2\.5_vl'; did you mean 'qwen2_5_vl'. allowed: .*llava"):
        get_backbone("qwen2.5_vl")


def test_a_registered_class_is_found() -> None:
    @register_backbone("mine")
    class Mine(Qwen25VL):
        pass

    assert type(get_backbone("mine")) is Mine
    assert get_backbone("mine").name == "mine"
    assert "mine" in list_backbones()


def test_registering_a_taken_name_raises() -> None:
    register_backbone("mine")(type("First", (Qwen25VL,), {}))
    with pytest.raises(ValueError, match=r"'mine' is taken by .*First"):
        register_backbone("mine")(type("Second", (Qwen25VL,), {}))
    with pytest.raises(ValueError, match="v1lit's own"):
        register_backbone("llava")(type("Third", (Qwen25VL,), {}))


def test_registering_the_same_class_again_is_no_conflict() -> None:
    for _ in range(2):
        same = register_backbone("mine")(type("Same", (Qwen25VL,), {"__module__": "m"}))
        assert type(get_backbone("mine")) is same


def test_a_class_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="not a subclass"):
        register_backbone("mine")(dict)
    claim(monkeypatch, ("theirs", "collections:OrderedDict"))
    with pytest.raises(ValueError, match="not a subclass"):
        get_backbone("theirs")


def test_an_entry_point_is_found_without_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    claim(monkeypatch, ("theirs", "v1lit.backbones.qwen:Qwen2VL"), ("broken", "no_such_package:Thing"))
    assert {"theirs", "broken"} <= set(list_backbones())
    assert get_backbone("theirs").model_type == "qwen2_vl"
    with pytest.raises(ValueError, match=r"'broken' cannot be loaded from no_such_package:Thing"):
        get_backbone("broken")


def test_conflicting_entry_points_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    claim(monkeypatch, ("theirs", "one:A"), ("theirs", "two:B"), ("llava", "three:C"))
    with pytest.raises(ValueError, match="several times: one:A, two:B"):
        get_backbone("theirs")
    with pytest.raises(ValueError, match=r"several times: .*llava:Llava, three:C"):
        get_backbone("llava")


def test_one_entry_point_found_twice_is_no_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    claim(monkeypatch, ("theirs", "v1lit.backbones.qwen:Qwen2VL"), ("theirs", "v1lit.backbones.qwen:Qwen2VL"))
    assert get_backbone("theirs").model_type == "qwen2_vl"
