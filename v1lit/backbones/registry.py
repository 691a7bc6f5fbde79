"""Backbones by name. Imports neither torch nor transformers; a family is imported when it is asked for.

A package of its own adds a backbone in one of two ways::

    @register_backbone("my_vlm")            # takes effect when the module is imported
    class MyVLM(Backbone): ...

    [project.entry-points."v1lit.backbones"]  # in its pyproject.toml; found without importing anything
    my_vlm = "my_package.my_module:MyVLM"
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TypeVar

from v1lit.backbones.contract import Backbone
from v1lit.errors import explain_unknown
from v1lit.plugins import plugins

ENTRY_POINT_GROUP = "v1lit.backbones"
BUILTIN: dict[str, str] = {
    "qwen2_vl": "v1lit.backbones.qwen:Qwen2VL",
    "qwen2_5_vl": "v1lit.backbones.qwen:Qwen25VL",
    "qwen3_vl": "v1lit.backbones.qwen3:Qwen3VL",
    "qwen3_5": "v1lit.backbones.qwen35:Qwen35",
    "llava": "v1lit.backbones.llava:Llava",
    "llava_next": "v1lit.backbones.llava_next:LlavaNext",
    "llava_onevision": "v1lit.backbones.llava_onevision:LlavaOnevision",
    "internvl": "v1lit.backbones.internvl:InternVL",
    "timm_lm": "v1lit.backbones.timm_lm:TimmLM",
    "gemma3": "v1lit.backbones.gemma3:Gemma3",
}
EXTRAS = {"timm_lm": "timm"}
"""Families of v1lit's own that need a package which is an extra."""
_registered: dict[str, type] = {}

C = TypeVar("C", bound=type)


def register_backbone(name: str) -> Callable[[C], C]:
    """Class decorator that makes a `Backbone` known under a name. Raises ValueError if it is taken."""

    def register(cls: C) -> C:
        # A module that is imported twice (reload, two paths) defines the same class again: not a conflict.
        owner = _registered.get(name)
        if owner is not None and _address(owner) != _address(cls):
            raise ValueError(
                f"backbone name {name!r} is taken by {_address(owner)}; {_address(cls)} needs another"
            )
        if name in BUILTIN and _address(cls) != BUILTIN[name]:
            raise ValueError(f"backbone name {name!r} is v1lit's own ({BUILTIN[name]}); choose another")
        _check_base_class(name, cls)
        _registered[name] = cls
        return cls

    return register


def list_backbones() -> list[str]:
    """Names of all known backbones, sorted."""
    return sorted({*BUILTIN, *_registered, *plugins(ENTRY_POINT_GROUP)})


def missing_extra(name: str) -> str | None:
    """The package that a family of v1lit's own needs and that is not installed; imports nothing."""
    package = EXTRAS.get(name)
    return package if package is not None and find_spec(package) is None else None


def get_backbone(name: str) -> Backbone:
    """The backbone of that name. Unknown names and conflicting registrations raise ValueError."""
    cls = _resolve(name)
    _check_base_class(name, cls)
    backbone: Backbone = cls()
    backbone.name = name
    return backbone


def _resolve(name: str) -> type:
    claims = plugins(ENTRY_POINT_GROUP)
    owners = [BUILTIN[name]] if name in BUILTIN else []
    owners += [_address(_registered[name])] if name in _registered else []
    owners += [point.value for point in claims.get(name, [])]
    if len(set(owners)) > 1:
        several = ", ".join(dict.fromkeys(owners))
        raise ValueError(f"backbone name {name!r} is claimed several times: {several}")
    if name in _registered:
        return _registered[name]
    if name in BUILTIN:
        module, _, attribute = BUILTIN[name].partition(":")
        loaded: type = getattr(import_module(module), attribute)
        return loaded
    if name in claims:
        point = claims[name][0]
        try:
            plugin: type = point.load()
        except (ImportError, AttributeError) as error:
            raise ValueError(f"backbone {name!r} cannot be loaded from {point.value}: {error}") from error
        return plugin
    raise ValueError(explain_unknown("backbone", name, list_backbones()))


def _check_base_class(name: str, cls: object) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Backbone)):
        raise ValueError(f"backbone {name!r}: {cls!r} is not a subclass of v1lit.backbones.contract.Backbone")


def _address(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"
