"""What a checkpoint keeps of reading: small, plain, exact, and refused where the data are others."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_runs import SaveAfter, fit, make_data, names, without_index, written
from hypothesis import given
from hypothesis import strategies as st

from v1lit.data.config import MixtureConfig, PackingConfig, SourceConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.data.encode.batch import ReadPosition
from v1lit.data.loading.ranks import Ranks
from v1lit.data.loading.state import (
    ReadingState,
    difference,
    progress_from_dict,
    progress_to_dict,
)
from v1lit.data.sampling.epoch import Progress, StepLayout
from v1lit.data.sampling.remaining import MicroBatchState, Remaining

STATE = st.builds(
    MicroBatchState, st.integers(0, 2**40), st.lists(st.integers(0, 2**40), max_size=5).map(tuple)
)
PROGRESS = st.builds(
    Progress,
    epoch=st.integers(0, 10**6),
    steps=st.integers(0, 10**9),
    since=st.integers(0, 10**9),
    remaining=st.builds(
        Remaining,
        st.lists(st.integers(0, 2**40), max_size=5).map(lambda head: np.array(head, dtype=np.int64)),
        st.integers(0, 2**40),
    ),
    layout=st.none() | st.builds(StepLayout, st.integers(1, 10**4), st.text()),
    states=st.lists(STATE, max_size=4).map(tuple),
)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


@given(PROGRESS)
def test_progress_comes_back_as_it_was_saved(progress: Progress) -> None:
    back = progress_from_dict(through_a_file(progress_to_dict(progress)))
    for name in ("epoch", "steps", "since", "layout", "states"):
        assert getattr(back, name) == getattr(progress, name)
    assert back.remaining.tail == progress.remaining.tail
    assert back.remaining.head.tolist() == progress.remaining.head.tolist()
    assert back.remaining.head.dtype == np.int64


def test_a_few_kilobytes_per_rank_are_kept() -> None:
    """128 examples waiting in each of 64 micro-batches, and as many left over from an earlier layout."""
    states = tuple(MicroBatchState(10**6, tuple(range(10**6, 10**6 + 128))) for _ in range(64))
    before = Progress(3, 1000, 0, Remaining(), StepLayout(64, "x"), states)
    layout = StepLayout(48, str(PackingConfig(8192)))
    again = before.divided(layout, None)
    later = Progress(3, 1001, 1000, again.remaining, layout, states[:48])
    for progress in (before, later):
        buffer = io.BytesIO()
        torch.save(progress_to_dict(progress), buffer)
        assert progress.layout is not None
        assert buffer.tell() / progress.layout.micro_batches < 4_000


def read(micro_batch: int, of: int, count: int, epoch: int = 0) -> ReadPosition:
    return ReadPosition(epoch, micro_batch, micro_batch == of - 1, MicroBatchState(count))


def test_the_state_is_that_behind_the_last_whole_step() -> None:
    state = ReadingState()
    assert state.of_all(Ranks()) is None
    layout = StepLayout(2, "x")
    state.begin(0, layout, None, Ranks())
    state.used(read(0, 2, 4), epoch_ends=False)
    assert state.of_all(Ranks()).steps == 0  # type: ignore[union-attr]
    state.used(read(1, 2, 5), epoch_ends=False)
    state.used(read(0, 2, 8), epoch_ends=False)
    found = state.of_all(Ranks())
    assert found == Progress(0, 1, 0, found.remaining, layout, (MicroBatchState(4), MicroBatchState(5)))  # type: ignore[union-attr]
    state.used(read(1, 2, 9), epoch_ends=True)
    assert state.of_all(Ranks()).epoch == 1  # type: ignore[union-attr]
    assert state.of_all(Ranks()).layout is None  # type: ignore[union-attr]


def test_a_resumed_state_is_given_out_until_reading_begins() -> None:
    state, saved = ReadingState(), Progress(2, 7, layout=StepLayout(1, "x"), states=(MicroBatchState(14),))
    state.resume(progress_to_dict(saved))
    assert state.of_all(Ranks()).steps == 7  # type: ignore[union-attr]
    begun = state.begin(0, StepLayout(1, "x"), None, Ranks())
    assert (begun.epoch, begun.steps, begun.states) == (
        2,
        7,
        saved.states,
    )  # Lightning does not know its epoch yet.
    assert state.begin(3, StepLayout(1, "x"), None, Ranks()).epoch == 3


@pytest.mark.parametrize(
    ("saved", "now", "said"),
    [
        ({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 2]}, None),
        ({"data.seed": 1}, {"data.seed": 2}, "data.seed: 1 in the checkpoint, 2 now"),
        ({"x": ["p", "q"]}, {"x": ["p"]}, "x: p, q in the checkpoint, p now"),
        ({}, {"data.seed": 2}, "data.seed: None in the checkpoint, 2 now"),
    ],
)
def test_what_differs_is_named(saved: dict[str, Any], now: dict[str, Any], said: str | None) -> None:
    assert difference(saved, now) == said


# ------------------------------------------------------------------ checkpoints of other data


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 4}, "data.seed: 3 in the checkpoint, 4 now"),
    "window": ({"stream": {"shuffle_window": 5}}, "data.stream.shuffle_window: 10000 in .*, 5 now"),
    "lanes": ({"stream": {"lanes": 2}}, "data.stream.lanes: 1 in the checkpoint, 2 now"),
    "shards": ({"source": "other"}, "the sources: "),
    "limit": ({"limit": 8}, "examples of each per epoch: 12 in the checkpoint, 8 now"),
}


def other_data(path: Path, options: dict[str, Any]) -> V1DataModule:
    options = dict(options)
    folder = path / options.pop("source", "same")
    source = SourceConfig(mixture=[MixtureConfig(str(folder), limit=options.pop("limit", None))])
    return make_data(folder, path, source=source, **options)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Checkpoints after 2 of 6 steps, and at the end of the epoch."""
    written(tmp_path / "same", 12)
    written(tmp_path / "other", 12, per_shard=4)
    for steps in (2, 6):
        fit(other_data(tmp_path, {}), tmp_path, SaveAfter(steps, tmp_path / f"{steps}.ckpt", stop=True))
    return tmp_path


@pytest.mark.parametrize("what", OTHERS)
def test_other_data_are_refused_in_the_middle_of_an_epoch_only(saved: Path, what: str) -> None:
    options, said = OTHERS[what]
    with pytest.raises(ValueError, match=rf"in the middle of an epoch of other data; {said}"):
        fit(other_data(saved, options), saved, resume=saved / "2.ckpt")
    between = fit(other_data(saved, options), saved, resume=saved / "6.ckpt", max_epochs=2)
    assert len(between.batches) == (4 if what == "limit" else 6)
    if what != "limit":
        assert sorted(id for batch in between.batches for id in batch) == names(12)


def test_the_same_data_may_lie_elsewhere_and_be_read_otherwise(saved: Path) -> None:
    """Batches, packing, workers, and the place of the shards are no part of the order."""
    (saved / "same").rename(saved / "moved")
    done = fit(other_data(saved, {"source": "moved"}), saved, max_steps=2).batches
    for options in ({"batch_size": 3}, {"packing": PackingConfig(240)}, {"num_workers": 1}):
        rest = fit(other_data(saved, {"source": "moved", **options}), saved, resume=saved / "2.ckpt").batches
        assert sorted(id for batch in [*done, *rest] for id in batch) == names(12)


def test_an_index_that_was_made_meanwhile_is_other_data(tmp_path: Path) -> None:
    """Said rather than guessed: the examples were not counted before."""
    indexed = written(tmp_path / "x" / "d", 12)
    plain = without_index(written(tmp_path / "y" / "d", 12))
    fit(make_data(plain, tmp_path), tmp_path, SaveAfter(2, tmp_path / "c", stop=True))
    with pytest.raises(ValueError, match=r"other data; the sources"):
        fit(make_data(indexed, tmp_path), tmp_path, resume=tmp_path / "c")
