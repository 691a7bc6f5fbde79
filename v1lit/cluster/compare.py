"""In what the ranks of a run differ, told in lines that name ranks and hosts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from v1lit.cluster.facts import Facts

MAX_SKEW = 2.0
"""Seconds by which a clock may differ from rank 0's. It is measured to about 0.1 s."""
BYTES_PER_PARAMETER = 12
"""Of a checkpoint: the weight and AdamW's two moments, in float32."""
COPIES = 3
"""Checkpoints that lie side by side at most: the best, the newest, and the one being written."""
SHOWN = 60
"""Characters of a value that are shown."""


@dataclass
class Findings:
    """What was found when ranks were compared."""

    errors: list[str] = field(default_factory=list)
    """For which a run does not begin."""
    warnings: list[str] = field(default_factory=list)


def compare(facts: Sequence[Facts], names: Callable[[list[int]], str], parameters: int | None) -> Findings:
    """Compare what all ranks have said.

    Args:
        facts: by rank.
        names: ranks with their hosts, as text.
        parameters: of the model, for the size of a checkpoint; None where it is not known.
    """
    found = Findings()
    for what, values in (
        ("", [fact.versions for fact in facts]),
        ("", [fact.recipe for fact in facts]),
        ("", [fact.shards for fact in facts]),
    ):
        found.errors += _differences(what, values, names)
    found.warnings += _differences("", [{"device": fact.device} for fact in facts], names)
    for rank, fact in enumerate(facts):
        found.errors += [f"{names([rank])} cannot reach {other}" for other in fact.unreachable]
        if abs(fact.skew) > MAX_SKEW:
            side = "ahead of" if fact.skew > 0 else "behind"
            found.warnings.append(
                f"the clock of {names([rank])} is {abs(fact.skew):.1f} s {side} rank 0's (more than "
                f"{MAX_SKEW:g} s): times in logs do not fit together"
            )
    _add_disk(found, facts, names, parameters)
    return found


def _differences(
    what: str, values: Sequence[Mapping[str, str]], names: Callable[[list[int]], str]
) -> list[str]:
    """A line for each key that not all ranks have with the same value."""
    lines = []
    for key in dict.fromkeys(key for mapping in values for key in mapping):
        ranks: dict[str | None, list[int]] = defaultdict(list)
        for rank, mapping in enumerate(values):
            ranks[mapping.get(key)].append(rank)
        if len(ranks) > 1:
            told = (f"{_shown(value)} on {names(group)}" for value, group in ranks.items())
            lines.append(f"{what}{key} is {', but '.join(told)}")
    return lines


def _shown(value: str | None) -> str:
    if value is None:
        return "missing"
    return value if len(value) <= SHOWN else f"{value[:SHOWN]}…"


def _add_disk(
    found: Findings, facts: Sequence[Facts], names: Callable[[list[int]], str], parameters: int | None
) -> None:
    """Free bytes against parameters x 12 bytes x checkpoints that lie side by side."""
    if parameters is None:
        return
    one = parameters * BYTES_PER_PARAMETER
    for rank, fact in enumerate(facts):
        if fact.free is None or fact.free >= COPIES * one:
            continue
        text = (
            f"{names([rank])} has {fact.free / 1e9:.1f} GB free for checkpoints; one takes up to "
            f"{one / 1e9:.1f} GB ({parameters:,} parameters x {BYTES_PER_PARAMETER} bytes), and {COPIES} may "
            "lie side by side"
        )
        # The others may write no checkpoint, or on a disk of their own.
        (found.errors if fact.free < one and rank == 0 else found.warnings).append(text)
