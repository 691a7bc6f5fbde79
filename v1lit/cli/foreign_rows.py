"""Options of commands that read rows in a foreign format."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from v1lit.cli.errors import a_path

if TYPE_CHECKING:
    from v1lit.data.importing.box_format import BoxFormat
    from v1lit.data.importing.format import Format


def add_row_options(parser: argparse.ArgumentParser) -> None:
    """`--images`, and `--box-...` for what the numbers of boxes mean."""
    from v1lit.data.importing.box_format import IMAGES, ORDERS, UNITS

    parser.add_argument(
        "--images", type=a_path, help="folder of the images that rows name; SOURCE's when not given"
    )
    parser.add_argument("--box-unit", choices=UNITS, help="what the numbers of boxes are")
    parser.add_argument("--box-order", choices=ORDERS, help="which numbers a box is; two are a point")
    parser.add_argument("--box-of", choices=IMAGES, help="which image they are on")
    parser.add_argument(
        "--box-size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="of the resized image, in pixels"
    )


def pop_boxes(form: Format, options: dict[str, Any]) -> BoxFormat | None:
    """Take the options of boxes out: the format's own boxes with them, or None where none was given."""
    given = {name: options.pop(f"box_{name}") for name in ("unit", "order", "of", "size")}
    changes = {name: value for name, value in given.items() if value is not None}
    if "size" in changes:
        changes["size"] = tuple(changes["size"])
    return replace(form.boxes, **changes) if changes else None
