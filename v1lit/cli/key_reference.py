"""`v1lit run RECIPE --help`: every key with its value in the recipe, what it may be and what it means."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import docstring_parser

from v1lit.cli.schema import ROOTS, describe, subfields, without_none

WIDTH = 100


def key_reference(config: Mapping[str, Any]) -> str:
    """One paragraph per key of a parsed recipe."""
    return "\n".join(_paragraphs(ROOTS, config, "", {"seed_everything": "Seed of every random number."}))


def _paragraphs(
    fields: Mapping[str, Any], values: Mapping[str, Any], prefix: str, meanings: Mapping[str, str]
) -> Iterator[str]:
    for name, annotation in fields.items():
        key, inner = f"{prefix}{name}", subfields(annotation)
        if inner is not None:
            parameters = docstring_parser.parse_from_object(without_none(annotation)).params
            inner_meanings = {parameter.arg_name: parameter.description or "" for parameter in parameters}
            yield from _paragraphs(inner, values[name], f"{key}.", inner_meanings)
            continue
        yield f"--{key}={values[name]!r}   ({describe(annotation)})"
        text = " ".join(meanings.get(name, "").split())
        yield from textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
