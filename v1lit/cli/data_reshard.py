"""`v1lit data reshard`: merge, split or shuffle shards."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields

from v1lit.cli.errors import Parser, RunFailed, a_path
from v1lit.data.errors import ShardError
from v1lit.data.reasons import in_words, listed_in, most_frequent
from v1lit.data.tools.reshard import SKIPPED_NAME, ReshardOptions, ReshardReport, reshard


def main(argv: Sequence[str]) -> int:
    """Run `v1lit data reshard` with the arguments behind it; returns the exit code."""
    parser = Parser(
        prog="v1lit data reshard",
        description="Examples of some shards to new shards, their bytes unchanged: merged, split or "
        "shuffled. Stopped and started again, it resumes.",
    )
    parser.add_locations()
    parser.add_argument("--out", type=a_path, required=True, help="folder for the shards: empty, or new")
    parser.add_argument(
        "--shuffle", type=int, metavar="SEED", help="mix all examples; the order stays if not given"
    )
    parser.add_argument("--examples-per-shard", type=int, default=1000, metavar="N", help="at most")
    parser.add_argument("--max-shard-mb", type=int, default=512, metavar="M", help="at most M MiB")
    parser.add_argument(
        "--on-bad", default="stop", help="stop at a shard or example that cannot be used, or skip and list it"
    )
    parser.add_work()
    options = parser.read_keywords(argv)
    how = ReshardOptions(**{field.name: options.pop(field.name) for field in fields(ReshardOptions)})
    try:
        report = reshard(**options, options=how)
    except ShardError as error:  # Bad data is no mistake in the command.
        raise RunFailed(f"{error}\n--on-bad skip leaves such data out and lists it") from error
    except KeyboardInterrupt:
        sys.stderr.write(f"{options['out']} is not complete; the same command resumes it\n")
        raise
    _print(report)
    if report.skipped and not report.examples:
        why = in_words(most_frequent(listed_in(report.folder / SKIPPED_NAME)))
        raise RunFailed(f"not one example could be used: {why}")
    return 0


def _print(report: ReshardReport) -> None:
    print(
        f"{report.folder}: {report.shards:,} shards, {report.examples:,} examples, "
        f"{report.bytes / 1e9:.3g} GB in {report.seconds:.1f} s"
    )
    if report.skipped:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.skipped.most_common())
        print(f"skipped: {kinds}; see {report.folder / SKIPPED_NAME}")
