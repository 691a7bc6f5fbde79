"""Values of a composed recipe before it is parsed: texts as they were typed, and paths expanded."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from v1lit.cli.errors import UserError
from v1lit.cli.recipe import Recipe, group_of
from v1lit.cli.schema import ROOTS, item_dataclass, kinds_of, leaves, subfields, type_problem, without_none
from v1lit.cli.yaml_texts import is_text
from v1lit.paths import expand_path, expand_within, is_url

_FOLDER = re.compile(r"(^|_)dir(path)?$")
_MAY_BE_NAMES = ("weights", "path", "resume", "begin_from")
_WORDS = ("tiny", "last", "auto")
"""Keys whose value is a path, a name of the hub, or one of these words."""


def prepare_values(recipe: Recipe) -> None:
    """Make `recipe.config` ready to be parsed, in place. Raises UserError naming the key."""
    types = dict(leaves())
    for key in recipe.typed:
        _take_text(recipe, key, types)
    recipe.config.update(_changed_paths(recipe.config, partial(_expanded, recipe)))


# --- texts ---


def _take_text(recipe: Recipe, key: str, types: Mapping[str, Any]) -> None:
    """Put what was typed for `key` in place of what YAML took it for, where a text is wanted."""
    typed = recipe.typed[key]
    group, name = group_of(recipe.config, key)
    top = next((leaf for leaf in types if f"{key}.".startswith(f"{leaf}.")), None)
    if top == key and is_text(types[key]):
        optional = type(None) in kinds_of(types[key])
        if not (optional and typed.text == "null") and not (_quoted(typed.text) and not typed.problem):
            group[name] = typed.text
    elif typed.problem:
        raise UserError(typed.problem)
    elif top is not None and not isinstance(group[name], str | dict | list):
        _try_text(recipe, key, top, types[top])


def _try_text(recipe: Recipe, key: str, top: str, annotation: Any) -> None:
    """Take the text instead of a number or the like, where only that fits the type of `top`, around `key`."""
    group, name = group_of(recipe.config, key)
    value = group[name]
    above, last = group_of(recipe.config, top)
    if type_problem(annotation, above[last]) is not None:
        group[name] = recipe.typed[key].text
        if type_problem(annotation, above[last]) is not None:
            group[name] = value


def _quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] and text[0] in "'\""


# --- paths ---


def absolute_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a parsed recipe whose paths mean the same in any current directory."""
    return _changed_paths(config, _absolute)


def _changed_paths(config: Mapping[str, Any], change: Callable[[str, str], str]) -> dict[str, Any]:
    return {
        name: _with_paths(config[name], annotation, name, change)
        for name, annotation in ROOTS.items()
        if name in config  # Where jsonargparse notes which files it read, there is nothing of the recipe.
    }


def _with_paths(value: Any, annotation: Any, key: str, change: Callable[[str, str], str]) -> Any:
    """`value` with `change(key, text)` for every path in it."""
    fields, item = subfields(annotation), item_dataclass(annotation)
    if isinstance(value, list) and item is not None:
        return [_with_paths(entry, item, f"{key}.{index}", change) for index, entry in enumerate(value)]
    if fields is None or not isinstance(value, Mapping):
        if isinstance(value, dict | list) or key.startswith("trainer."):
            name = key.rpartition(".")[2]
            return expand_within(value, name, lambda inner, text: change(f"{key}.{inner}", text))
        return value
    paths = getattr(without_none(annotation), "PATHS", ())
    return {
        name: change(f"{key}.{name}", entry)
        if name in paths and isinstance(entry, str)
        else _with_paths(entry, fields.get(name), f"{key}.{name}", change)
        for name, entry in value.items()
    }


def _expanded(recipe: Recipe, key: str, text: str) -> str:
    try:
        return expand_path(text, keys=ROOTS)
    except ValueError as error:
        raise UserError(f"{key} ({recipe.origin(key)}): {error}") from error


def _absolute(key: str, text: str) -> str:
    name = key.rpartition(".")[2]
    if is_url(text) or (key.startswith("trainer.") and not _FOLDER.search(name)):
        return text
    if name in _MAY_BE_NAMES and (text in _WORDS or not os.path.lexists(text)):
        return text
    return os.path.abspath(text)
