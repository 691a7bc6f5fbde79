"""`v1lit sweep report FOLDER`: how the trials of a sweep compare, from their files alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from v1lit.cli.errors import Parser, UserError, a_path


def main(argv: Sequence[str]) -> int:
    """Run `v1lit sweep report` with the arguments after `report`; returns the exit code."""
    options = make_parser().read(argv)
    from v1lit.sweep.report import ExtraMissingError, make_report

    folder = Path(options.folder)
    output = Path(options.output or folder / "report")
    try:
        tables = make_report(
            folder, output, dict(options.baseline or []), options.metric or (), options.level
        )
    except (ExtraMissingError, ValueError) as error:
        raise UserError(str(error)) from error
    for problem in tables.problems:
        print(f"missing: {problem}")
    print(f"the report is in {output}: report.html, report.md, report.tex, tables/, figures/, recipes/")
    return 0


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        prog="v1lit sweep report",
        description="Compare the trials of a sweep: Markdown, one HTML file, LaTeX tables, CSV and figures, "
        "made from the files of the trials. Trials that are not done are named and left out of means.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=a_path, help="that `v1lit sweep` has made")
    parser.add_argument("--output", type=a_path, help="folder to write to; FOLDER/report when not given")
    parser.add_argument(
        "--baseline",
        metavar="AXIS=LABEL",
        type=_label,
        action="append",
        help="what to compare with, instead of the sweep's own baseline; may be given once for each axis",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        action="append",
        help="what to compare, such as val/forced_region_iou, instead of the sweep's own metrics; may be "
        "given several times",
    )
    parser.add_argument(
        "--level",
        type=_level,
        default=0.95,
        help="at which all intervals of a table hold together; default 0.95",
    )
    return parser


def _label(text: str) -> tuple[str, str]:
    axis, sign, label = text.partition("=")
    if not (axis and sign and label):
        raise argparse.ArgumentTypeError(f"{text!r} names no label: give AXIS=LABEL")
    return axis, label


def _level(text: str) -> float:
    try:
        level = float(text)
    except ValueError:
        level = 0.0
    if not 0 < level < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no level: give a number between 0 and 1, such as 0.95")
    return level
