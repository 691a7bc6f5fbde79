"""Strategies by name. Imports no torch; a strategy's module is imported when it is asked for.

A package of its own adds one by an entry point, found without importing anything::

    [project.entry-points."v1lit.revisit"]
    my_look = "my_package.my_module:MyLook"
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from v1lit.errors import OptionError, name_allowed
from v1lit.plugins import plugins
from v1lit.revisit.config import RevisitConfig

if TYPE_CHECKING:
    from v1lit.revisit.strategy import Strategy

ENTRY_POINT_GROUP = "v1lit.revisit"
BUILTIN: dict[str, str] = {
    "point_and_copy": "v1lit.revisit.point_and_copy:PointAndCopy",
    "multi_patch": "v1lit.revisit.multi_patch:MultiPatch",
    "point_only": "v1lit.revisit.point_only:PointOnly",
    "coordinates": "v1lit.revisit.coordinates:Coordinates",
    "crop": "v1lit.revisit.crop:Crop",
    "replay": "v1lit.revisit.replay:Replay",
    "text_only": "v1lit.revisit.text_only:TextOnly",
}


def list_strategies() -> list[str]:
    """Names of all known strategies, sorted."""
    return sorted({*BUILTIN, *plugins(ENTRY_POINT_GROUP)})


def make_strategy(config: RevisitConfig | None = None) -> Strategy:
    """The strategy of a recipe with its options; `point_and_copy` for None.

    Raises OptionError for a name that is unknown or claimed twice, and for options that it does not take.
    """
    config = config or RevisitConfig()
    cls = _resolve(config.name)
    names = list(getattr(cls, "__dataclass_fields__", {}))
    for name, value in config.options.items():
        if name not in names:
            why = f"{config.name} has no such option; {name_allowed(name, names)}"
            raise OptionError(f"options.{name}", value, why, config.GROUP)
    made: Strategy = cls(**config.options)
    return made


def _resolve(name: str) -> type[Strategy]:
    from v1lit.revisit.strategy import Strategy

    claims = plugins(ENTRY_POINT_GROUP)
    values = [point.value for point in claims.get(name, [])]
    if len({*values, *([BUILTIN[name]] if name in BUILTIN else [])}) > 1:
        why = f"several packages claim that name: {', '.join(values)}"
        raise OptionError("name", name, why, RevisitConfig.GROUP)
    if name in BUILTIN:
        module, _, attribute = BUILTIN[name].partition(":")
        cls = getattr(import_module(module), attribute)
    elif name in claims:
        try:
            cls = claims[name][0].load()
        except (ImportError, AttributeError) as error:
            why = f"it cannot be loaded from {values[0]}: {error}"
            raise OptionError("name", name, why, RevisitConfig.GROUP) from error
    else:
        raise OptionError("name", name, name_allowed(name, list_strategies()), RevisitConfig.GROUP)
    if not (isinstance(cls, type) and issubclass(cls, Strategy)):
        why = f"{cls!r} is not a subclass of v1lit.revisit.strategy.Strategy"
        raise OptionError("name", name, why, RevisitConfig.GROUP)
    return cls
