"""What a recipe may say: its keys and their types, read from the signatures, and the checks against them."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any, Literal, Union

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.pytorch import Trainer

from v1lit.cli.parser_reasons import reason_in
from v1lit.cli.recipe import Recipe
from v1lit.data.datamodule import V1DataModule
from v1lit.errors import MOST_NAMED, OptionError, did_you_mean
from v1lit.training.config import RunConfig
from v1lit.training.module import V1Module

ROOTS: dict[str, Any] = {
    "seed_everything": int,
    "trainer": Trainer,
    "model": V1Module,
    "data": V1DataModule,
    "run": RunConfig,
}
LINKED = {(V1DataModule, "backbone"): "model.backbone", (V1DataModule, "revisit"): "model.revisit"}
"""Parameters that are always those of another group: no recipe may set them."""


class UnknownKeyError(OptionError):
    """A key that no recipe has."""

    def told(self, origin: str = "") -> str:
        return f"unknown key {self.key!r}{f' ({origin})' if origin else ''}{self.why}"


def check_keys(recipe: Recipe) -> None:
    """Check that every key exists and has a value of its type; raises UserError naming key and file."""
    with recipe.options():
        _check(recipe.config, ROOTS, "")


def _check(config: Mapping[Any, Any], fields: Mapping[str, Any], prefix: str) -> None:
    for name, value in config.items():
        key = f"{prefix}{name}"
        if key in ("data.backbone", "data.revisit"):
            raise OptionError(key, value, f"it is always model.{name}: set that")
        if name not in fields:
            raise _unknown(key, value, fields, prefix)
        kind, item_kind = fields[name], item_dataclass(fields[name])
        if item_kind is not None and isinstance(value, list):
            for index, item in enumerate(value):
                _check_group(item, item_kind, f"{key}.{index}")
        elif subfields(kind) is not None:
            _check_group(value, without_none(kind), key)
        elif (problem := type_problem(kind, value)) is not None:
            raise wrong_value(key, value, problem, kind)


def _check_group(value: object, kind: Any, key: str) -> None:
    fields = subfields(kind) or {}
    if not isinstance(value, Mapping):
        why = f"it must be a mapping, or the path of a part\nits keys: {_listed(list(fields), key)}"
        raise OptionError(key, value, why)
    _check(value, fields, f"{key}.")
    for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        optional = {field.default, field.default_factory} != {dataclasses.MISSING}
        if not optional and field.name not in value:
            raise OptionError(key, dict(value), f"it lacks {field.name!r}")


def _unknown(key: str, value: object, fields: Mapping[str, Any], prefix: str) -> UnknownKeyError:
    """The error about an unknown key, with the same name in another group, else the nearest one beside it."""
    name = key.removeprefix(prefix)
    elsewhere = [other for other, _ in leaves() if other.rpartition(".")[2] == name]
    hint = did_you_mean(elsewhere[0], elsewhere) if elsewhere else did_you_mean(name, fields, prefix)
    allowed = _listed(list(fields), prefix.rstrip("."), name)
    return UnknownKeyError(key, value, f"{hint}\nallowed here: {allowed}")


def _listed(names: list[str], group: str, like: str = "") -> str:
    if len(names) <= MOST_NAMED:
        return ", ".join(names)
    close = difflib.get_close_matches(like, names, n=5, cutoff=0.3) or names[:5]
    return f"{', '.join(close)} and {len(names) - len(close)} more of {group}; --print_config shows them all"


def subfields(annotation: Any) -> dict[str, Any] | None:
    """Keys of a group that a recipe may set, with their types; None where `annotation` is a plain value."""
    annotation = without_none(annotation)
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        return {field.name: hints[field.name] for field in dataclasses.fields(annotation)}
    if annotation in (Trainer, V1Module, V1DataModule):
        hints = typing.get_type_hints(annotation.__init__)
        names = [name for name in signature(annotation).parameters if (annotation, name) not in LINKED]
        return {name: hints.get(name, Any) for name in names}
    return None


def item_dataclass(annotation: Any) -> type | None:
    """The dataclass of which `annotation` is a list, if it is one."""
    kinds = typing.get_args(annotation) if typing.get_origin(annotation) is list else ()
    return next((kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """The types that a union allows; of any other type, that one."""
    union = typing.get_origin(annotation) in (Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def without_none(annotation: Any) -> Any:
    """`X` for `X | None`, any other type as it is."""
    kinds = [kind for kind in kinds_of(annotation) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 else annotation


def with_all_groups(config: Mapping[str, Any], fields: Mapping[str, Any] = ROOTS) -> dict[str, Any]:
    """A copy of `config` in which every group stands, so that each key gets its default at least."""
    full = dict(config)
    for name, annotation in fields.items():
        inner = subfields(annotation)
        if inner is not None:
            full[name] = with_all_groups(full.get(name, {}), inner)
    return full


def leaves(fields: Mapping[str, Any] = ROOTS, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that a recipe may set, with its type."""
    for name, annotation in fields.items():
        inner = subfields(annotation)
        if inner is None:
            yield f"{prefix}{name}", annotation
        else:
            yield from leaves(inner, f"{prefix}{name}.")


def dataclasses_of(
    values: Mapping[str, Any], fields: Mapping[str, Any] = ROOTS, prefix: str = ""
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Every dataclass of a parsed recipe, behind those in it: its key, its class and its values."""
    for name, annotation in fields.items():
        key, inner, value = f"{prefix}{name}", subfields(annotation), values.get(name)
        if (kind := item_dataclass(annotation)) is not None:
            for index, item in enumerate(value or []):
                yield f"{key}.{index}", kind, dict(vars(item) if isinstance(item, Namespace) else item)
        if inner is None or not isinstance(value, Mapping):
            continue
        yield from dataclasses_of(value, inner, f"{key}.")
        kind = without_none(annotation)
        if dataclasses.is_dataclass(kind):
            yield key, kind, dict(value)


def type_problem(annotation: Any, value: object) -> str | None:
    """What jsonargparse has against `value` for that type, or None. Interpolations are left to the parser."""
    if annotation is Any or "${" in str(value):
        return None
    if value is None and type(None) not in typing.get_args(
        annotation
    ):  # jsonargparse takes null for any type
        return "null is not allowed"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=annotation)
    try:
        parser.parse_object({"value": deepcopy(value)})  # it completes what it is given
    except ArgumentError as error:
        return str(error)
    return None


def describe(annotation: Any) -> str:
    """A type in words: `one of 'joint', 'separate'`, `an integer or null`, ..."""
    words = {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "a text",
        Path: "a path",
        type(None): "null",
    }
    if annotation in words:
        return words[annotation]
    kinds, values = kinds_of(annotation), literals(annotation)
    if values or len(kinds) > 1:
        first = [f"one of {', '.join(map(repr, values))}"] if values else []
        others = [describe(kind) for kind in kinds if typing.get_origin(kind) is not Literal]
        return " or ".join([*first, *dict.fromkeys(others)])
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        return f"a list of {len(inner)}: {', '.join(describe(kind) for kind in inner)}"
    if origin is list:
        return f"a list, each {describe(inner[0])}"
    if origin is dict:
        return "a mapping"
    if dataclasses.is_dataclass(annotation):
        return f"a mapping with {', '.join(subfields(annotation) or {})}"
    return f"a {getattr(annotation, '__name__', annotation)} (class_path and init_args)"


def literals(annotation: Any) -> list[Any]:
    """The values that a type spells out."""
    spelled = [kind for kind in kinds_of(annotation) if typing.get_origin(kind) is Literal]
    return [value for kind in spelled for value in typing.get_args(kind)]


def wrong_value(key: str, given: object, problem: str = "", annotation: Any = None) -> OptionError:
    """The error about a value of the wrong type: what is wrong, the nearest match, what is allowed.

    Args:
        key: of the value.
        given: the value.
        problem: what jsonargparse said; of a class and its arguments it knows more than the type does.
        annotation: the type, where the key is not one of `leaves`.
    """
    annotation = dict(leaves()).get(key) if annotation is None else annotation
    if annotation is None:
        return OptionError(key, given, "it does not take that")
    hint = did_you_mean(given, map(str, literals(annotation))).removeprefix("; ")
    said = "; ".join(text for text in (hint, reason_in(problem)) if text)
    quoted = isinstance(given, int | float) and str in kinds_of(annotation)
    remedy = "; in quotes it is a text" if quoted else ""
    return OptionError(key, given, f"{said}\nallowed: {describe(annotation)}{remedy}".strip())
