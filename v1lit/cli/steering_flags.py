"""Flags of a command that asks a model: where and when it may look, and what regions a question is about."""

from __future__ import annotations

import argparse
import re
from argparse import Namespace
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from v1lit.cli.errors import UserError
from v1lit.errors import OptionError
from v1lit.grounding.markup import region_name
from v1lit.grounding.region import Region

if TYPE_CHECKING:
    from v1lit.steering.options import Steering

_PLACE = re.compile(r"(?:(\d{1,4}):)?([^:]+)")
FLAGS = {"points": "--no-pointing", "queries": "--query"}
"""Of options of `Steering` that are called otherwise on the command line."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a parser."""
    add: Any = parser.add_argument_group(
        "regions and steering",
        "A BOX is X1,Y1,X2,Y2 in pixels of the original image; 2:X1,Y1,X2,Y2 is one of the second image.",
    ).add_argument
    box: dict[str, Any] = {"action": "append", "type": a_place, "metavar": "BOX"}
    add(
        "--region",
        **box,
        help=f"what {region_name(1)} in the question stands for, the next one {region_name(2)}, ...",
    )
    add("--region-coordinates", action="store_true", help="write its box too, for a model trained so")
    add("--inside", **box, help="point only at patches that see some of these boxes")
    add("--outside", **box, help="point at none that sees some of these")
    add("--no-pointing", dest="points", action="store_false", help="point at nothing")
    add("--max-looks", type=int, metavar="N", help="look N times at most")
    add("--max-pointers", type=int, metavar="N", help="N pointers of an object at most")
    add("--connected", action="store_true", help="patches of an object touch each other")
    add("--distinct", action="store_true", help="no patch twice in an object")
    add("--once", action="store_true", help="no patch twice in an answer, nor one that the question has")
    add("--grammar", action="store_true", help="calls and regions are well formed")
    add("--look-every", type=int, metavar="N", help="look again after N tokens of text at most")
    add("--query", dest="queries", action="append", metavar="TEXT", help="look for this first; the next then")


def a_place(text: str) -> Region:
    """The type of a flag that is a box."""
    found = _PLACE.fullmatch(text.strip())
    try:
        if found is None or found[1] == "0":
            raise ValueError("images are counted from 1")
        return Region.from_box([float(number) for number in found[2].split(",")], int(found[1] or 1) - 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no box X1,Y1,X2,Y2 of pixels: {error}") from error


def steering(options: Namespace) -> Steering | None:
    """What the flags ask for; None for nothing. Raises UserError for flags that exclude each other."""
    from v1lit.steering.options import Steering

    asked = {field.name: getattr(options, field.name) for field in fields(Steering)}
    given = {name: value for name, value in asked.items() if value is not None}
    try:
        steer = Steering(**given)
    except OptionError as error:
        shown = "" if error.field == "points" else f" {_shown(error.given)}"
        why = error.why.replace("points=False", "--no-pointing").replace("max_looks=0", "--max-looks 0")
        raise UserError(f"{_flag(error.field)}{shown}: {why}\nsee v1lit generate --help") from None
    return None if steer == Steering() else steer


def _flag(field: str) -> str:
    return FLAGS.get(field, f"--{field.replace('_', '-')}")


def _shown(given: object) -> str:
    return ", ".join(map(repr, given)) if isinstance(given, list) else str(given)
