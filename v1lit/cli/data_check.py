"""`v1lit data check`: whether anything is wrong with shards."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from v1lit.cli.errors import Parser, a_path
from v1lit.data.tools.check import CheckReport, check

MEANINGS = {
    "unreachable": "cannot be opened or fetched",
    "shard": "damaged or cut-off tar file",
    "checksum": "other bytes than the index says",
    "member": "a member missing, of unknown kind, too large, or no plain file",
    "image": "not decodable, or too many pixels",
    "invalid": "breaks a rule of examples",
    "missing": "named by the index, but not there",
    "unlisted": "there, but not named by the index",
    "index": "the index is missing, damaged, or made for other content",
    "duplicate": "an id that occurs again",
}


def main(argv: Sequence[str]) -> int:
    """Run `v1lit data check` with the arguments behind it; returns the exit code."""
    parser = Parser(
        prog="v1lit data check",
        description="Every byte against the index, every example against its rules, every image decoded. "
        "Exit code 0: nothing is wrong, 1: something is.",
    )
    parser.add_locations()
    parser.add_argument("--no-decode", dest="decode", action="store_false", help="read image headers only")
    parser.add_argument(
        "--out", type=a_path, help="file for everything that is found, one JSON object per line"
    )
    parser.add_work()
    options = parser.read_keywords(argv)
    report = check(**options)
    for folder in report.without_index:
        sys.stderr.write(
            f"{folder} has no index: missing shards and changed bytes cannot be noticed; "
            f"`v1lit data index {folder}` makes one\n"
        )
    if report.passed:
        print(f"nothing is wrong: {_totals(report)}")
        return 0
    _print_findings(report, options["out"])
    return 1


def _totals(report: CheckReport) -> str:
    images = f"{report.images:,} images{' decoded' if report.decoded else ''}"
    return (
        f"{report.shards:,} shards, {report.examples:,} examples, {images}, {report.regions:,} regions, "
        f"{report.bytes / 1e9:.3g} GB in {report.seconds:.1f} s"
    )


def _print_findings(report: CheckReport, out: str | None) -> None:
    from rich.table import Table

    from v1lit.console import screen

    for finding in report.first:
        print(finding)
    total = report.kinds.total()
    if total > len(report.first):
        where = out if out is not None else "--out FILE writes all of them to a file"
        print(f"... and {total - len(report.first):,} more: {where}")
    table = Table(title=f"{total:,} problems", title_justify="left")
    table.add_column("kind", no_wrap=True)
    table.add_column("found", justify="right")
    table.add_column("meaning")
    for kind, count in report.kinds.most_common():
        table.add_row(kind, f"{count:,}", MEANINGS[kind])
    screen().print(table)
    print(_totals(report))
