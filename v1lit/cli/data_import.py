"""`v1lit data import`: rows in another format to shards."""

from __future__ import annotations

from collections.abc import Sequence

from v1lit.cli.errors import Parser, RunFailed, a_path
from v1lit.cli.foreign_rows import add_row_options, pop_boxes


def main(argv: Sequence[str]) -> int:
    """Run `v1lit data import` with the arguments behind it; returns the exit code."""
    from v1lit.data.formats.registry import FORMATS, get_format
    from v1lit.data.importing.run import import_rows

    parser = Parser(prog="v1lit data import", description="Rows in another format to WebDataset shards.")
    parser.add_argument(
        "format", help=f"of the rows: {', '.join(FORMATS)}, or a .yaml file that maps columns"
    )
    parser.add_argument("source", type=a_path, help="a file, a folder of files, or a hub id (owner/name)")
    parser.add_argument(
        "--out", type=a_path, required=True, help="folder for the shards, one below it per split"
    )
    add_row_options(parser)
    parser.add_argument("--split", help="import this split only")
    parser.add_argument("--overwrite", action="store_true", help="replace an import that the folder holds")
    parser.add_argument("--max-examples-per-shard", type=int, default=1000)
    parser.add_work()
    options = parser.read_keywords(argv)
    form = get_format(options.pop("format"))
    boxes = pop_boxes(form, options)
    report = import_rows(form, options.pop("source"), options.pop("out"), boxes=boxes, **options)
    if report.failed:
        raise RunFailed(report.failed)
    return 0
