"""What `v1lit sweep --dry-run` prints: the trials, and what all of them will cost."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Sequence
from datetime import timedelta

from rich.table import Table

from v1lit.cli.sweep_check import STEPS, Checked
from v1lit.console import Console
from v1lit.sweep.config import Sweep
from v1lit.sweep.cost import REACHED
from v1lit.sweep.folder import SweepFolder
from v1lit.sweep.ledger import DONE, FILE, pasts, read_events


def show_plan(
    sweep: Sweep,
    checked: Sequence[Checked],
    folder: SweepFolder,
    jobs: int,
    console: Console,
    here: bool = True,
) -> None:
    """Print a line for each trial, their sum, and one command as a person would type it.

    `here` says whether they will run on this machine.
    """
    kind, amount = sweep.budget.kind, sweep.budget.amount
    console.print(
        f"{sweep.name}: {len(checked)} trials of {amount:,g} {kind}, {jobs} at a time, in {folder.path}"
    )
    table = Table()
    table.add_column("trial")
    for column in ("steps", "tokens", "FLOPs", "time", "disk"):
        table.add_column(column, justify="right")
    for one in checked:
        steps = one.trial.changes[STEPS]
        table.add_row(
            one.trial.name, f"{steps:,}" if steps > 0 else "?", _number(one.tokens), _number(one.flops),
            _time(one.seconds), _bytes(one.disk),
        )  # fmt: skip
    sums = {
        name: _sum(getattr(one, name) for one in checked) for name in ("tokens", "flops", "seconds", "disk")
    }
    table.add_section()
    tokens, flops = _number(sums["tokens"]), _number(sums["flops"])
    table.add_row(f"all {len(checked)}", "", tokens, flops, _time(sums["seconds"]), _bytes(sums["disk"]))
    console.print(table)
    for line in _remarks(checked, folder, jobs, sums["seconds"], sums["disk"], here):
        console.print(line, soft_wrap=True)
    words = checked[0].trial.words(sweep.base, folder.path)
    console.print("the first: " + shlex.join(["lightning", "run", *words]), soft_wrap=True)


def _remarks(
    checked: Sequence[Checked],
    folder: SweepFolder,
    jobs: int,
    seconds: float | None,
    disk: float | None,
    here: bool,
) -> Iterable[str]:
    took = [past.seconds for past in pasts(read_events(folder.path / FILE)).values() if past.state == DONE]
    if took:
        each = sum(took) / len(took)
        left = _time(each * (len(checked) - len(took)) / jobs)
        yield f"{len(took)} trials are done, {_time(each)} each; {left} for the others"
    elif seconds is not None:
        yield (
            f"about {_time(seconds / jobs)}, if trials reach {REACHED:.0%} of the device's peak; "
            "starts, validations and reports come on top"
        )
    for why in dict.fromkeys(one.unknown for one in checked if one.unknown):
        yield f"tokens and time are not known: {why}"
    place = next(path for path in [folder.path, *folder.path.absolute().parents] if path.exists())
    free = shutil.disk_usage(place).free
    if here and disk is not None and disk > free:
        yield f"the disk has {_bytes(free)} free, less than all trials leave"


def _sum(values: Iterable[float | None]) -> float | None:
    listed = list(values)
    known = [value for value in listed if value is not None]
    return sum(known) if len(known) == len(listed) else None


def _number(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:,.0f}" if value < 1e9 else f"{value:.3g}"


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else str(timedelta(seconds=round(seconds)))


def _bytes(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value / 1e9:,.1f} GB" if value >= 1e9 else f"{value / 1e6:,.0f} MB"
