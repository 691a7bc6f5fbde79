"""`v1lit data import`: rows in another format to shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from v1lit.cli.errors import Parser, RunFailed, a_path

if TYPE_CHECKING:
    from v1lit.data.importing.box_format import BoxFormat
    from v1lit.data.importing.format import Format


def main(argv: Sequence[str]) -> int:
    """Run `v1lit data import` with the arguments behind it; returns the exit code."""
    from v1lit.data.formats.registry import FORMATS, get_format
    from v1lit.data.importing.box_format import IMAGES, ORDERS, UNITS
    from v1lit.data.importing.run import import_rows

    parser = Parser(prog="v1lit data import", description="Rows in another format to WebDataset shards.")
    parser.add_argument(
        "format", help=f"of the rows: {', '.join(FORMATS)}, or a .yaml file that maps columns"
    )
    parser.add_argument("source", type=a_path, help="a file, a folder of files, or a hub id (owner/name)")
    parser.add_argument(
        "--out", type=a_path, required=True, help="folder for the shards, one below it per split"
    )
    parser.add_argument(
        "--images", type=a_path, help="folder of the images that rows name; SOURCE's if not given"
    )
    parser.add_argument("--box-unit", choices=UNITS, help="what the numbers of boxes are")
    parser.add_argument("--box-order", choices=ORDERS, help="which numbers a box is; two numbers are a point")
    parser.add_argument("--box-of", choices=IMAGES, help="which image they are on")
    parser.add_argument(
        "--box-size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="of the resized image, in pixels"
    )
    parser.add_argument("--split", help="import this split only")
    parser.add_argument("--overwrite", action="store_true", help="replace an import that the folder holds")
    parser.add_argument("--max-examples-per-shard", type=int, default=1000)
    parser.add_work()
    options = parser.read_keywords(argv)
    form = get_format(options.pop("format"))
    boxes = _boxes(form, {name: options.pop(f"box_{name}") for name in ("unit", "order", "of", "size")})
    report = import_rows(form, options.pop("source"), options.pop("out"), boxes=boxes, **options)
    if report.failed:
        raise RunFailed(report.failed)
    return 0


def _boxes(form: Format, given: dict[str, Any]) -> BoxFormat | None:
    """The format's own boxes with what was said otherwise."""
    changes = {name: value for name, value in given.items() if value is not None}
    if "size" in changes:
        changes["size"] = tuple(changes["size"])
    return replace(form.boxes, **changes) if changes else None
