"""`v1lit data check`: whether anything is wrong with shards, or with those of a recipe for its run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from v1lit.cli.errors import Parser, UserError, a_path
from v1lit.cli.stage_recipes import each_stage
from v1lit.cli.surveys import is_recipe, open_recipe, print_sheet, rules_of
from v1lit.data.tools.check import CheckReport, check
from v1lit.paths import expand_path

if TYPE_CHECKING:
    from v1lit.data.datamodule import V1DataModule

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
    "length": "the recipe refuses it: it does not fit, or nothing is left to learn",
}


OF_DATA = ("data", "model.revisit", *(f"model.backbone.{name}" for name in ("name", "image", "views")))
"""Keys that decide what a run has of its examples."""


def main(argv: Sequence[str]) -> int:
    """Run `v1lit data check` with the arguments behind it; returns the exit code."""
    parser = Parser(
        prog="v1lit data check",
        usage="v1lit data check (LOCATION ... | RECIPE [--key=value ...]) [options]",
        description="Every byte against the index, every example against its rules, every image decoded; of "
        "a recipe also what its run would have of its training and validation examples: lengths against the "
        "limit, what is refused, regions that no token sees, cost in tokens. Exit code 0: nothing is wrong, "
        "1: something is.",
    )
    what = "folder, tar file or pattern, local or URL; or one recipe"
    parser.add_argument("locations", metavar="location", nargs="+", help=what)
    parser.add_argument("--no-decode", dest="decode", action="store_false", help="read image headers only")
    parser.add_argument(
        "--out",
        type=a_path,
        help="file for everything that is found, and for what is lost of examples, one JSON object per line",
    )
    parser.add_work()
    options, changes = parser.read_with_changes(argv)
    # A change with a space in it is read as one more location.
    changes += [word for word in options.locations if word.startswith("--")]
    options.locations = [expand_path(word) for word in options.locations if not word.startswith("--")]
    keywords = {name: value for name, value in vars(options).items() if name != "debug"}
    recipes = [location for location in options.locations if is_recipe(location)]
    if not recipes:
        parser.refuse(changes)
        return 0 if _print(check(**keywords), options.out) else 1
    if len(options.locations) > 1:
        raise UserError(
            f"{recipes[0]} is a recipe, which is checked by itself\ngive it alone, or locations only"
        )
    if options.out is None:
        code = each_stage(main, argv, recipes[0], changes, alike=OF_DATA)
        if code is not None:
            return code
    data = open_recipe(recipes[0], changes)
    return 0 if _check_recipe(data, keywords) else 1


def _check_recipe(data: V1DataModule, keywords: dict[str, Any]) -> bool:
    """Check the shards of a recipe and say what a run would have of them; returns if nothing is wrong."""
    from v1lit.data.tools.mix import times_per_epoch
    from v1lit.data.tools.sheets import cost_sheet, length_sheet
    from v1lit.data.tools.survey import Surveyor
    from v1lit.data.tools.trips import stops, what_is_lost

    rules = rules_of(data, val=True)
    report = check(**{**keywords, "locations": list(rules)}, surveyor=Surveyor(rules))
    passed = _print(report, keywords["out"])
    print_sheet(length_sheet(report.surveys, data.encoding.max_tokens))
    print_sheet(cost_sheet(report.surveys, times_per_epoch(data.train_sources, data.stream, data.seed)))
    for sentence in what_is_lost(report.surveys, data.encoding):
        print(sentence)
    lost = any(survey.cut_examples or survey.unseen_examples for survey in report.surveys.values())
    if lost and keywords["out"] is None:
        print("--out FILE lists the examples that are cut, or have regions that no token sees")
    train = {source.shards: report.surveys[source.shards] for source in data.train_sources}
    if (stop := stops(train, data.stream)) is not None:
        print(stop)
    return passed and stop is None


def _print(report: CheckReport, out: str | None) -> bool:
    """Say what was found, and return whether that is nothing."""
    for folder in report.without_index:
        sys.stderr.write(
            f"{folder} has no index: missing shards and changed bytes cannot be noticed; "
            f"`v1lit data index {folder}` makes one\n"
        )
    if report.passed:
        print(f"nothing is wrong: {_totals(report)}")
    else:
        _print_findings(report, out)
    return report.passed


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
