"""`v1lit run RECIPE --help`: every key with its value in the recipe, what it may be and what it means."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

import docstring_parser

from v1lit.cli.schema import ROOTS, describe, subfields, without_none

WIDTH = 100
REQUIRED = inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class Key:
    """A key that a recipe may set."""

    name: str
    """In full, such as `model.pointer.gate`."""
    annotation: Any
    """The type of its values; `describe` says it in words."""
    meaning: str
    """What its class says of it, on one line; empty where that says nothing."""
    default: Any
    """Its value where no recipe says one; `REQUIRED` where one must be given."""


def keys(fields: Mapping[str, Any] = ROOTS, owner: Any = None, prefix: str = "") -> Iterator[Key]:
    """Every key below `fields`, which are those of the class `owner`, in the order of the classes."""
    meanings = _meanings(owner)
    for name, annotation in fields.items():
        inner = subfields(annotation)
        if inner is None:
            meaning = " ".join(meanings.get(name, "").split())
            yield Key(f"{prefix}{name}", annotation, meaning, _default(owner, name))
        else:
            yield from keys(inner, without_none(annotation), f"{prefix}{name}.")


def key_reference(config: Mapping[str, Any]) -> str:
    """One paragraph per key of a parsed recipe."""
    return "\n".join(_paragraphs(config))


def _paragraphs(config: Mapping[str, Any]) -> Iterator[str]:
    for key in keys():
        value = reduce(lambda group, name: group[name], key.name.split("."), config)
        yield f"--{key.name}={value!r}   ({describe(key.annotation)})"
        yield from textwrap.wrap(key.meaning, WIDTH, initial_indent="    ", subsequent_indent="    ")


def _meanings(owner: Any) -> dict[str, str]:
    if owner is None:
        return {"seed_everything": "Seed of every random number."}
    parameters = docstring_parser.parse_from_object(owner).params
    return {parameter.arg_name: parameter.description or "" for parameter in parameters}


def _default(owner: Any, name: str) -> Any:
    if owner is None:
        return 0  # of `seed_everything`, as in `RecipeCLI`
    if not dataclasses.is_dataclass(owner):
        default = inspect.signature(owner).parameters[name].default
        return [] if default == () else default  # `()` stands for an empty list, which no default may be
    field = next(field for field in dataclasses.fields(owner) if field.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED if field.default is dataclasses.MISSING else field.default
