"""Ranks with different numbers of batches make equally many steps, and none waits for ever."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier, Lock
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.forked import needs_fork
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from v1lit.backbones.config import BackboneConfig
from v1lit.data.config import EncodingConfig, PackingConfig, SourceConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.data.encode.batch import Batch, LabelCounts, blank_batch
from v1lit.data.example import ExampleRef
from v1lit.data.loading.micro_batch import Failure, MicroBatch
from v1lit.data.loading.ranks import Ranks
from v1lit.data.loading.step import iter_steps
from v1lit.data.synthetic import synthesize

RANKS = 2
LENGTH = 180
"""Two of the scenes, where they are small."""


class Threads(Ranks):
    """Ranks that are threads of one process."""

    def __init__(self) -> None:
        super().__init__(RANKS)
        self.__dict__ |= {"barrier": Barrier(RANKS, timeout=5), "lock": Lock(), "total": 0}

    def add_up(self, table: torch.Tensor) -> torch.Tensor:
        with self.lock:
            self.__dict__["total"] = self.total + table
        self.barrier.wait()
        total = self.total
        if self.barrier.wait() == 0:
            self.__dict__["total"] = 0
        self.barrier.wait()
        return total


def made(name: str, text: int, examples: int = 1) -> MicroBatch:
    zeros = torch.zeros(1, 4, dtype=torch.long)
    counts = LabelCounts(text, 2 * text, 1)
    return MicroBatch(
        Batch((name,) * examples, zeros, zeros, zeros, {}, (4,), counts=counts), (None,) * examples
    )


def context(size: int, ranks: Ranks, drop: bool = False, limit: float = math.inf) -> Any:
    """What steps are made of: `size` batches of each rank."""
    return SimpleNamespace(accumulate=size, ranks=ranks, drops_tail=drop, limit=limit)


def blank() -> Batch:
    return blank_batch(0, flat=True)


def played(
    ranks: Ranks, numbers: tuple[int, ...], steps: int | None = None, drop: bool = False
) -> list[list[list[Any]]]:
    """Per rank, of every step: examples, text of the step, and the names of this rank's batches."""

    def play(rank: int) -> list[list[Any]]:
        source = [made(f"{rank}-{number}", 10 * rank + number) for number in range(numbers[rank])]
        return [
            [step.examples, int(step.batches[0].step_sums[0]), [one.ids for one in step.batches]]
            for step in iter_steps(source, context(3, ranks, drop), blank, steps=steps)
        ]

    with ThreadPoolExecutor(len(numbers)) as pool:
        return list(pool.map(play, range(len(numbers))))


def named(rank: int, numbers: list[int]) -> list[tuple[str, ...]]:
    return [() if number < 0 else (f"{rank}-{number}",) for number in numbers]


@pytest.mark.parametrize("steps", [None, 3], ids=["until all have ended", "a known number of steps"])
def test_ranks_end_together_and_blank_batches_stand_for_missing_ones(steps: int | None) -> None:
    """4 batches on one rank, 8 on the other, steps of 3."""
    first, second = played(Threads(), (4, 8), steps=steps)
    assert [step[:2] for step in first] == [window[:2] for window in second]
    assert [step[:2] for step in second] == [[6, 3 + 33], [4, 3 + 42], [2, 33]]
    assert [step[2] for step in first] == [named(0, [0, 1, 2]), named(0, [3, -1, -1]), named(0, [-1] * 3)]
    assert [step[2] for step in second] == [
        named(1, [0, 1, 2]), named(1, [3, 4, 5]), named(1, [6, 7, -1]),
    ]  # fmt: skip


def test_or_a_step_that_is_not_full_is_dropped() -> None:
    first, second = played(Threads(), (4, 8), drop=True)
    assert len(first) == len(second) == 1
    assert first[0][2] == named(0, [0, 1, 2])


def test_counts_are_shares_of_the_whole_step() -> None:
    (step,) = iter_steps([made("a", 3), made("b", 5)], context(2, Ranks()), blank)
    for batch in step.batches:
        assert batch.step_counts is not None
        assert batch.step_counts.tolist() == [4.0, 8.0, 1.0]


def test_failures_are_told_to_all() -> None:
    failure = Failure(ExampleRef(0, 0, 0, 0), "shard", "key", "image", "why")
    (step,) = iter_steps([MicroBatch(blank(), (failure, failure)), made("b", 5)], context(2, Ranks()), blank)
    assert (step.examples, step.failures) == (1, 2)


def test_several_ranks_without_torch_distributed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 ranks without torch.distributed"):
        Ranks.of(SimpleNamespace(world_size=2))  # type: ignore[arg-type]


class Noting(LightningModule):
    """Learns the mean of 1 over the text of a step, and writes what it saw into a file for each rank."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[Any]] = {"batches": [], "gradients": []}

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        assert batch.counts is not None
        assert batch.step_counts is not None
        self.trainer.datamodule.consumed(batch)  # type: ignore[attr-defined]
        self.seen["batches"].append([batch.read.epoch, *batch.ids])  # type: ignore[union-attr]
        return self.weight * batch.counts.text / batch.step_counts[0]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        assert self.weight.grad is not None
        self.seen["gradients"].append(self.weight.grad.item())

    def on_train_end(self) -> None:
        (self.folder / f"{self.global_rank}.json").write_text(json.dumps(self.seen))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.timeout(60)
@needs_fork
def test_two_processes_with_different_numbers_of_packs_make_the_same_steps(tmp_path: Path) -> None:
    synthesize(tmp_path / "train", examples=38, image_size=(112, 112), workers=1, progress=False)
    data = V1DataModule(
        BackboneConfig("qwen2_5_vl"),
        source=SourceConfig("shards", str(tmp_path)),
        encoding=EncodingConfig(max_tokens=LENGTH, coordinates=False),
        packing=PackingConfig(LENGTH),
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=RANKS,
        strategy=DDPStrategy(
            start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=20)
        ),
        max_epochs=2,
        accumulate_grad_batches=2,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Noting(tmp_path), datamodule=data)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    steps = [len(rank["gradients"]) for rank in ranks]
    assert steps[0] == steps[1]
    for rank in ranks:
        assert rank["gradients"] == pytest.approx([1.0] * len(rank["gradients"]))
        assert len(rank["batches"]) == 2 * steps[0]
    for epoch in (0, 1):
        seen = [name for rank in ranks for one, *names in rank["batches"] if one == epoch for name in names]
        assert sorted(seen) == [f"shapes-s0-{number:07}" for number in range(38)]
    assert any(len(batch) == 1 for rank in ranks for batch in rank["batches"]), "no rank has run out first"


def test_a_limit_ends_the_last_step_where_lightning_steps() -> None:
    """Steps of 3, at most 4 batches: the second one counts one batch, not three."""
    source = [made(str(number), 10 + number) for number in range(9)]
    found = [
        [one.ids[0] for one in step.batches] + [step.batches[0].step_counts[0].item() * 3]  # type: ignore[index]
        for step in iter_steps(source, context(3, Ranks(), limit=4), blank)
    ]
    assert found == [["0", "1", "2", pytest.approx(33)], ["3", pytest.approx(13)]]
