"""The tables of a page of results, made from the tables of its sweep's reports, so that no figure is typed.

    python tools/docs/results.py docs/results/strategies.md [--check]

Beside the page, in a folder of its name, lie tables as `v1lit sweep report` writes them, one folder for each
report. What stands on the page between `<!-- table: NAME -->` and `<!-- end -->` is replaced by what the
function of that name in `TABLES` makes of them. With `--check`, nothing is written, and the exit code is 1 if
the page would change.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from v1lit.files import write_atomically

METRIC = "val/answer_accuracy"
MARKED = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(argv: Sequence[str]) -> int:
    """Write the tables of the page that is named; returns the exit code."""
    page = Path(argv[0])
    before = page.read_text(encoding="utf-8")
    after = with_tables(before, page.with_suffix(""))
    if "--check" in argv:
        return int(before != after)
    write_atomically(page, after)
    return 0


def with_tables(markdown: str, folder: Path) -> str:
    """The page with its tables made of those in `folder`; raises KeyError for a table that nobody makes."""

    def table(found: re.Match[str]) -> str:
        name, *arguments = found[2].split()
        return f"{found[1]}{TABLES[name](folder, *arguments)}\n{found[3]}"

    return MARKED.sub(table, markdown)


def families(folder: Path, report: str) -> str:
    """Right answers in percent: a row for each way of looking again, a column for each family, and all."""
    values = _values(folder / report, METRIC)
    names = list(dict.fromkeys(values.family))
    rows = []
    for revisit, own in values.groupby("revisit", sort=False):
        cells = [_spread(own[own.family == name].value) for name in names]
        rows.append([f"`{revisit}`", *cells, f"{100 * own.value.mean():.1f}"])
    return _table(["", *(f"`{name}`" for name in names), "mean"], rows)


def groups(folder: Path, report: str) -> str:
    """Right answers in percent by group of questions, over all families; bold where clear of the baseline."""
    values = pd.read_csv(folder / report / "values.csv")
    names = [name for name in dict.fromkeys(values.metric) if name != METRIC]
    pooled = pd.read_csv(folder / report / "pooled.csv")
    clear = set(pooled[pooled.clear][["revisit", "metric"]].itertuples(index=False, name=None))
    rows = []
    for revisit, own in values.groupby("revisit", sort=False):
        cells = [f"{100 * own[own.metric == name].value.mean():.1f}" for name in names]
        bold = ("**" if (revisit, name) in clear else "" for name in names)
        rows.append([f"`{revisit}`", *(mark + cell + mark for mark, cell in zip(bold, cells, strict=True))])
    return _table(["", *(f"`{name.rpartition('/')[2]}`" for name in names)], rows)


def differences(folder: Path, baseline: str) -> str:
    """Points of percent more than the baseline, at equal steps and at equal FLOPs, over all families."""
    rows = []
    steps, equal = (_pooled(folder / baseline / name) for name in ("pooled.csv", "equal_pooled.csv"))
    for revisit in steps.index:
        rows.append([f"`{revisit}`", *_difference(steps.loc[revisit]), *_difference(equal.loc[revisit])])
    titles = ("equal steps", "interval", "clear", "equal FLOPs", "interval", "clear")
    return _table(["", *titles], rows)


def costs(folder: Path, report: str) -> str:
    """What a trial takes: tokens, operations and seconds of training, mean over all families and seeds."""
    trials = pd.read_csv(folder / report / "trials.csv")
    rows = []
    for revisit, own in trials.groupby("revisit", sort=False):
        tokens, flops = own.tokens.mean() / 1e6, own.flops.mean() / 1e12
        seconds = f"{own.training_seconds.mean():.0f}"
        rows.append([f"`{revisit}`", f"{tokens:.2f} million", f"{flops:.2f} T", seconds])
    return _table(["", "tokens", "FLOPs", "seconds of training"], rows)


TABLES: dict[str, Callable[..., str]] = {
    "families": families,
    "groups": groups,
    "differences": differences,
    "costs": costs,
}


def _values(report: Path, metric: str) -> pd.DataFrame:
    values = pd.read_csv(report / "values.csv")
    return values[values.metric == metric]


def _pooled(path: Path) -> pd.DataFrame:
    pooled = pd.read_csv(path)
    return pooled[pooled.metric == METRIC].set_index("revisit")


def _spread(shares: pd.Series) -> str:
    deviation = f" ± {100 * shares.std():.1f}" if len(shares) > 1 else ""
    return f"{100 * shares.mean():.1f}{deviation}"


def _difference(row: pd.Series) -> list[str]:
    low, high = _signed(row.t_low), _signed(row.t_high)
    return [_signed(row.difference), f"{low} to {high}", "yes" if row.clear else "no"]


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
