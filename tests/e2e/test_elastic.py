"""Real processes: the same steps on any number of them, and nothing lost or repeated where a run goes on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.elastic_runs import (
    BACKBONE,
    Run,
    SaveAt,
    each_once,
    fit,
    ids_of,
    make_data,
    write_shards,
)
from helpers.forked import needs_fork

from v1lit.data.config import MixtureConfig, PackingConfig, SourceConfig, StreamConfig
from v1lit.data.example import Example
from v1lit.data.shards import Shard
from v1lit.data.shards.catalog import Catalog
from v1lit.training.config import OptimizerConfig
from v1lit.training.module import V1Module

pytestmark = [needs_fork, pytest.mark.timeout(600), pytest.mark.slow]
COUNT = 37
ROW = 150
"""Tokens: two or three examples."""
PACKED = {"packing": PackingConfig(ROW, look_ahead=8)}


@dataclass(frozen=True)
class Shards:
    """Two sources, the first of which has a validation split."""

    folder: Path
    ids: list[str]
    more: list[str]

    def data(self, **options: Any) -> Any:
        return make_data(self.folder, **options)

    @property
    def mixture(self) -> SourceConfig:
        return SourceConfig(
            mixture=[
                MixtureConfig(str(self.folder / "train"), weight=2.0),
                MixtureConfig(str(self.folder / "more"), weight=1.0, limit=11),
            ]
        )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("shards")
    ids = write_shards(folder / "train", COUNT)
    more = write_shards(folder / "more", 13, name="m")
    write_shards(folder / "val", 3, name="v")
    return Shards(folder, ids, more)


# ------------------------------------------------------------------ one order for any number of processes

LAYOUTS = [(1, 4, 0), (2, 2, 1), (4, 1, 2)]
"""Ranks, accumulated batches, workers."""
KINDS: dict[str, dict[str, Any]] = {
    "counted": {},
    "counted, 4 lanes": {"stream": StreamConfig(lanes=4, shuffle_window=6)},
    "packed": PACKED,
    "packed, 4 lanes": {**PACKED, "stream": StreamConfig(lanes=4, shuffle_window=6)},
}


@pytest.mark.parametrize("kind", [*KINDS, "mixture", "packed mixture"])
def test_a_step_reads_the_same_on_any_number_of_ranks_and_workers(
    kind: str, shards: Shards, tmp_path: Path
) -> None:
    mixture = {"source": shards.mixture, **(PACKED if "packed" in kind else {})}
    options = {"max_epochs": 2, "limit_val_batches": 0}
    runs = [
        fit(
            tmp_path / str(ranks),
            shards.data(**KINDS.get(kind, mixture), num_workers=workers),
            ranks=ranks,
            accumulate_grad_batches=accumulate,
            **options,
        )
        for ranks, accumulate, workers in LAYOUTS
    ]
    for run in runs:
        assert [one.batches for one in run.steps] == [one.batches for one in runs[0].steps]
        assert [one.epoch for one in run.steps] == [one.epoch for one in runs[0].steps]
        assert run.epochs == 2
        assert len(run.steps) == run.total
        if "mixture" not in kind:
            assert each_once(run.epoch(0), shards.ids)
            assert each_once(run.epoch(1), shards.ids)
            assert run.epoch(0) != run.epoch(1)
        else:
            drawn = run.epoch(0)
            assert len(drawn) == len(set(drawn)) == 32 + 11  # two thirds of 48, and at most 11
            assert len(set(drawn) & set(shards.more)) == 11


# ------------------------------------------------------------------ going on elsewhere


@dataclass(frozen=True)
class Part:
    """A part of a run: on what it runs, and after how many optimizer steps it stops (None: at the end)."""

    ranks: int
    accumulate: int = 1
    workers: int = 0
    stop: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    hook: str | None = None
    """It stops when this is called for the `stop`-th time, if not after a step."""


def save_at(part: Part, work: Path) -> SaveAt:
    """Where a part ends."""
    assert part.stop is not None
    if part.hook is not None:
        return SaveAt(work, part.hook, (part.stop,))
    return SaveAt(work, "on_train_batch_end", (part.stop * part.accumulate,))


def run_parts(parts: list[Part], shards: Shards, work: Path, **options: Any) -> list[Run]:
    """Every part goes on from the checkpoint of the one before."""
    runs: list[Run] = []
    resume = None
    for number, part in enumerate(parts):
        stop = None if part.stop is None else save_at(part, work)
        run = fit(
            work / str(number),
            shards.data(**part.data, num_workers=part.workers),
            *([stop] if stop else []),
            ranks=part.ranks,
            accumulate_grad_batches=part.accumulate,
            resume=resume,
            **options,
        )
        runs.append(run)
        resume = stop.last if stop else None
    return runs


CHAINS: dict[str, list[Part]] = {
    "4 ranks to 3": [Part(4, stop=3), Part(3)],
    "4 ranks to 2 with workers": [Part(4, 1, 2, stop=2), Part(2, 1, 1)],
    "4 ranks to 1": [Part(4, stop=3), Part(1)],
    "1 rank to 4": [Part(1, 3, stop=2), Part(4, 2)],
    "4 ranks to 3 to 2": [Part(4, stop=2), Part(3, stop=2), Part(2, 2, 1)],
    "3 ranks to 4 in the second epoch": [Part(3, stop=9), Part(4)],
    "another batch size": [Part(2, 2, stop=3, data={"batch_size": 3}), Part(2, 2, data={"batch_size": 2})],
}
LANES = {"stream": StreamConfig(lanes=3, shuffle_window=6)}
PACKED_CHAINS = {
    **{f"packed: {name}": [replace(part, data=PACKED) for part in parts] for name, parts in CHAINS.items()},
    "another length of rows": [
        Part(2, 2, stop=2, data=PACKED),
        Part(2, 2, data={"packing": PackingConfig(2 * ROW, look_ahead=4)}),
    ],
    "lanes": [Part(4, stop=2, data=LANES), Part(3, stop=2, data=LANES), Part(2, data=LANES)],
    "packed, then counted": [Part(4, stop=2, data=PACKED), Part(2, stop=2), Part(3, data=PACKED)],
}


@pytest.mark.parametrize("name", [*CHAINS, *PACKED_CHAINS])
def test_going_on_with_other_ranks_repeats_and_loses_nothing(
    name: str, shards: Shards, tmp_path: Path
) -> None:
    parts = {**CHAINS, **PACKED_CHAINS}[name]
    runs = run_parts(parts, shards, tmp_path, max_epochs=2)
    steps = [step for run in runs for step in run.steps]
    for epoch in (0, 1):
        assert each_once(ids_of(step for step in steps if step.epoch == epoch), shards.ids)
    assert [step.number for step in steps] == list(range(len(steps)))
    assert [step.counted for step in steps] == [step.epoch for step in steps]
    assert runs[-1].epochs == 2
    assert runs[-1].validations[-1] == len(steps)
    assert runs[-1].total == len(steps)
    rates = [step.rate for step in runs[-1].steps]
    assert rates == pytest.approx([1 - step.number / len(steps) for step in runs[-1].steps])


def test_a_mixture_goes_on_with_what_its_sources_have_left(shards: Shards, tmp_path: Path) -> None:
    data = {"source": shards.mixture, **PACKED, "stream": StreamConfig(lanes=2)}
    (whole,) = run_parts([Part(1, 4, data=data)], shards, tmp_path / "whole", max_epochs=2)
    parts = [Part(4, stop=3, data=data), Part(3, stop=4, data=data), Part(1, 2, 1, data=data)]
    steps = [step for run in run_parts(parts, shards, tmp_path / "parts", max_epochs=2) for step in run.steps]
    for epoch in (0, 1):
        assert each_once(ids_of(step for step in steps if step.epoch == epoch), whole.epoch(epoch))


@pytest.mark.parametrize("packed", [False, True], ids=["counted", "packed"])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end", "on_validation_end"])
def test_at_the_end_of_an_epoch_none_is_lost_and_none_is_cut_short(
    hook: str, packed: bool, shards: Shards, tmp_path: Path
) -> None:
    options = PACKED if packed else {}
    last = 5
    stop = last if hook == "on_train_batch_end" else 1
    parts = [
        Part(4, stop=stop, data=options, hook=hook),
        Part(3, stop=1, data=options),
        Part(2, data=options),
    ]
    runs = run_parts(parts, shards, tmp_path, max_epochs=3)
    assert len(runs[0].steps) == last
    steps = [step for run in runs for step in run.steps]
    for epoch in range(3):
        assert each_once(ids_of(step for step in steps if step.epoch == epoch), shards.ids)
    assert [step.number for step in steps] == list(range(len(steps))) == list(range(runs[-1].total or 0))
    assert [step.counted for step in steps] == [step.epoch for step in steps]
    assert runs[-1].epochs == 3
    assert runs[-1].validations[-1] == len(steps)


@pytest.mark.parametrize("packed", [False, True], ids=["counted", "packed"])
def test_steps_that_are_limited_go_on_through_epochs(packed: bool, shards: Shards, tmp_path: Path) -> None:
    options = PACKED if packed else {}
    parts = [Part(2, 2, stop=3, data=options), Part(3, stop=4, data=options), Part(4, 1, 2, data=options)]
    runs = run_parts(parts, shards, tmp_path, max_epochs=-1, max_steps=19, val_check_interval=4)
    steps = [step for run in runs for step in run.steps]
    assert [step.number for step in steps] == list(range(19))
    assert {run.total for run in runs} == {19}
    assert [step.counted for step in steps] == [step.epoch for step in steps]
    for epoch in range(steps[-1].epoch):
        assert each_once(ids_of(step for step in steps if step.epoch == epoch), shards.ids)
    assert runs[-1].validations[-1] == 19
    last = ids_of(step for step in steps if step.epoch == steps[-1].epoch)
    assert len(last) == len(set(last))


@pytest.mark.parametrize("packed", [False, True], ids=["counted", "packed"])
def test_a_tail_that_is_dropped_is_told_and_left_out_on_any_number_of_ranks(
    packed: bool, shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"stream": StreamConfig(tail="drop"), **(PACKED if packed else {})}
    caplog.set_level("INFO")
    for ranks, accumulate, _ in LAYOUTS[::2]:
        run = fit(
            tmp_path / str(ranks),
            shards.data(**options),
            ranks=ranks,
            accumulate_grad_batches=accumulate,
            max_epochs=2,
        )
        assert len(run.steps) == run.total
        assert all(() not in step.batches for step in run.steps)
        if ranks == 1:  # the log of other processes is not seen
            left = COUNT - len(run.epoch(0))
            assert left > 0
            assert f"epoch 0: {left} of {COUNT} training examples are left over" in caplog.text
            expected = run.batches
        assert run.batches == expected
        assert len(ids_of(run.steps)) == len(set(run.epoch(0))) + len(set(run.epoch(1)))
    with pytest.raises(
        ValueError, match=r"37 training examples do not fill one optimizer step of 40 batches"
    ):
        fit(tmp_path / "none", shards.data(**options), accumulate_grad_batches=40)


# ------------------------------------------------------------------ going on as if nothing had been

STOPS = {
    "before the first step": ("on_train_batch_end", (1,)),
    "after steps, and amid one": ("on_train_batch_end", (4, 7)),
    "at the end of an epoch": ("on_train_epoch_end", (1,)),
    "in the validations": ("on_validation_batch_end", (1, 3)),
    "after the sanity check": ("on_sanity_check_end", (1,)),
    "at the last step": ("on_train_end", (1,)),
}
"""Where checkpoints are written: a hook, and which calls of it."""


def model() -> V1Module:
    return V1Module(BACKBONE, optimizer=OptimizerConfig(lr=1e-3, schedule="linear"))


@pytest.fixture(scope="module")
def tail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards whose epochs on four micro-batches end with few examples, the last of them without a picture."""
    folder = tmp_path_factory.mktemp("tail")
    write_shards(folder / "train", 27)
    write_shards(folder / "val", 3, name="v")
    return folder


@pytest.mark.parametrize("packed", [False, True], ids=["counted", "packed"])
def test_stopped_and_resumed_weights_are_those_of_a_run_that_never_stopped(
    packed: bool, tail: Path, tmp_path: Path
) -> None:
    options = {"ranks": 2, "accumulate_grad_batches": 2, "max_epochs": 2, "num_sanity_val_steps": 1}
    data = {"seed": 9, "num_workers": 1, "val_batch_size": 1, **(PACKED if packed else {"batch_size": 3})}
    saves = [SaveAt(tmp_path, hook, times, stop=False) for hook, times in STOPS.values()]
    whole = fit(tmp_path / "whole", make_data(tail, **data), *saves, module=model(), **options)
    assert () in whole.batches[-1], "no rank has run out of examples"
    assert any(len(batch) == 1 and int(batch[0][1:]) % 3 == 0 for step in whole.batches for batch in step)
    assert same_weights(whole.weights)
    for path in (path for save in saves for path in save.paths.values()):
        rest = fit(tmp_path / path.stem, make_data(tail, **data), module=model(), resume=path, **options)
        assert rest.batches == whole.batches[len(whole.steps) - len(rest.steps) :], path
        assert [step.rate for step in rest.steps] == [
            step.rate for step in whole.steps[len(whole.steps) - len(rest.steps) :]
        ]
        assert rest.epochs == 2
        assert same_weights([*whole.weights, *rest.weights]), path


def same_weights(all_weights: list[dict[str, torch.Tensor]]) -> bool:
    first = all_weights[0]
    return all(
        torch.equal(weight, first[name]) for weights in all_weights for name, weight in weights.items()
    )


# ------------------------------------------------------------------ at once


class Reads:
    """Counts the shards that are opened, and the examples that are read, from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shards: list[str] = []
        self.examples: list[str] = []
        opened, example = Catalog.open, Shard.example

        def count_open(catalog: Catalog, number: int) -> Shard:
            self.shards.append(Path(catalog.files[number]).name)
            return opened(catalog, number)

        def count_example(shard: Shard, number: int) -> Example:
            read = example(shard, number)
            self.examples.append(read.id)
            return read

        monkeypatch.setattr(Catalog, "open", count_open)
        monkeypatch.setattr(Shard, "example", count_example)


@pytest.mark.parametrize("stop", [3, 40])
@pytest.mark.parametrize("indexed", [True, False], ids=["with an index", "without"])
@pytest.mark.parametrize("packed", [False, True], ids=["counted", "packed"])
def test_nothing_before_the_position_is_read_again(
    packed: bool, indexed: bool, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of ten, shuffled within ten: an epoch reads one or two at a time."""
    ids = write_shards(tmp_path / "train", 120, per_shard=10)
    if not indexed:
        for path in (tmp_path / "train").glob("*index*"):
            path.unlink()
    options = {"stream": StreamConfig(shuffle_window=10), **(PACKED if packed else {})}
    save = SaveAt(tmp_path, "on_train_batch_end", (stop,))
    before = fit(tmp_path / "a", make_data(tmp_path, **options), save)
    reads = Reads(monkeypatch)
    rest = fit(tmp_path / "b", make_data(tmp_path, **options), resume=save.last)
    left = ids_of(rest.steps)
    assert each_once([*ids_of(before.steps), *left], ids)
    assert set(reads.examples) == set(left)
    lengths_are_known = indexed or not packed
    assert len(reads.examples) == len(left) * (1 if lengths_are_known else 2)
    if indexed:
        assert set(reads.shards) == {f"shard-{int(id[1:]) // 10:06}.tar" for id in left}
        assert len(reads.shards) < 12 or stop == 3
