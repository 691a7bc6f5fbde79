"""What a checkpoint keeps of reading: how far, of which data, and what could not be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from v1lit.data.loading.ranks import Ranks
from v1lit.data.loading.skips import SkipList
from v1lit.data.loading.state import difference


class Reading(Protocol):
    """How far a run has read: `ReadingState` of shards, `StreamReading` of a stream."""

    begun: bool

    def saved(self, ranks: Ranks) -> dict[str, Any]: ...
    def resume(self, state: Mapping[str, Any]) -> None: ...


def save_reading(
    reading: Reading, identity: Callable[[], dict[str, Any]], skips: SkipList, ranks: Ranks
) -> dict[str, Any]:
    """The state of all ranks, each of which must call it; empty where nothing was read.

    identity: what decides the order of the examples.
    """
    state = reading.saved(ranks)
    if not state:
        return {}
    return {**state, "data": identity(), **skips.saved(state["epoch"], state["steps"])}


def load_reading(
    state: Mapping[str, Any], reading: Reading, identity: Callable[[], dict[str, Any]], skips: SkipList
) -> None:
    """Let `reading` and `skips` resume where the state was saved.

    Raises ValueError if reading has begun, or in the middle of an epoch of other data.
    """
    if reading.begun:
        raise ValueError(
            "the trainer read training data before it loaded the checkpoint, to estimate the number of "
            "steps; set trainer.max_steps, and trainer.max_epochs=-1"
        )
    refuse_other_order(state, identity)
    skips.resume(state)
    reading.resume(state)


def refuse_other_order(state: Mapping[str, Any], identity: Callable[[], dict[str, Any]]) -> None:
    """Raise ValueError if the examples of the epoch that a state is in come in another order now."""
    other = difference(state["data"], identity()) if state.get("steps") else None
    if other is not None:
        raise ValueError(
            f"the checkpoint was made in the middle of an epoch of other data; {other}\n"
            "its order cannot be resumed: take the same data and options, or begin a new run"
        )
