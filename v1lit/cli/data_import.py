"""`v1lit data import`: rows in another format to shards."""

from __future__ import annotations

from collections.abc import Sequence

from v1lit.cli.errors import Parser, RunFailed, a_path


def main(argv: Sequence[str]) -> int:
    """Run `v1lit data import` with the arguments behind it; returns the exit code."""
    from v1lit.data.sources.registry import IMPORTERS, get_importer

    parser = Parser(prog="v1lit data import", description="Rows in another format to WebDataset shards.")
    parser.add_argument("format", help=f"format of the rows: {', '.join(IMPORTERS)}")
    parser.add_argument(
        "source", type=a_path, help="a parquet file, a folder of them, or a hub id (owner/name)"
    )
    parser.add_argument(
        "--out", type=a_path, required=True, help="folder for the shards, one below it per split"
    )
    parser.add_argument("--split", help="import this split only")
    parser.add_argument("--overwrite", action="store_true", help="replace an import that the folder holds")
    parser.add_argument("--max-examples-per-shard", type=int, default=1000)
    parser.add_work()
    options = parser.read_keywords(argv)
    report = get_importer(options.pop("format"))(options.pop("source"), options.pop("out"), **options)
    if report.failed:
        raise RunFailed(report.failed)
    return 0
