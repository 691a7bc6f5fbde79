"""Ranks with different numbers of packs make equally many steps, and none waits for ever."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier, Lock
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from v1lit.backbones.config import BackboneConfig
from v1lit.data.batch import Batch, LabelCounts
from v1lit.data.config import EncodingConfig, PackingConfig, SourceConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.data.synthetic import synthesize
from v1lit.data.windows import Ranks, windows

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


def batch(name: str, text: int) -> Batch:
    zeros = torch.zeros(1, 4, dtype=torch.long)
    return Batch((name,), zeros, zeros, zeros, {}, (4,), counts=LabelCounts(text, 2 * text, 1))


def expected(rank: int, numbers: list[int], counted: list[int] | None = None) -> list[Any]:
    counted = numbers if counted is None else counted
    text = sum(10 * r + n for r in range(RANKS) for n in counted)
    means = [pytest.approx(value / (3 * RANKS)) for value in (text, 2 * text, RANKS * len(counted))]
    return [RANKS * len(numbers), [[f"{rank}-{number}", means] for number in numbers]]


@pytest.mark.parametrize(
    ("options", "numbers", "uncounted"),
    [
        ({}, [[0, 1, 2], [3, 4]], []),
        ({"whole": True}, [[0, 1, 2]], []),
        ({"start": 1}, [[0, 1, 2], [3, 4]], [0]),
    ],
    ids=["all that every rank has", "whole windows only", "resumed behind the first batch"],
)
def test_ranks_end_together_and_share_their_counts(
    options: Any, numbers: list[list[int]], uncounted: list[int]
) -> None:
    """5 batches on one rank, 8 on the other, windows of 3."""
    ranks = Threads()

    def play(rank: int) -> list[Any]:
        batches = [batch(f"{rank}-{number}", 10 * rank + number) for number in range((5, 8)[rank])]
        return [
            [window.examples, [[one.ids[0], one.step_counts.tolist()] for one in window.batches]]  # type: ignore[union-attr]
            for window in windows(batches, lambda: 3, ranks, **options)
        ]

    with ThreadPoolExecutor(RANKS) as pool:
        for rank, found in enumerate(pool.map(play, range(RANKS))):
            assert found == [
                expected(rank, window, [number for number in window if number not in uncounted])
                for window in numbers
            ]


def test_one_rank_alone_needs_no_others_and_keeps_its_last_window() -> None:
    batches = [batch(str(number), number) for number in range(5)]
    found = list(windows(batches, lambda: 2, Ranks.of(1)))
    assert [[one.ids[0] for one in window.batches] for window in found] == [["0", "1"], ["2", "3"], ["4"]]
    counts = [window.batches[-1].step_counts.tolist() for window in found]  # type: ignore[union-attr]
    assert counts == [[0.5, 1, 1], [2.5, 5, 1], [2, 4, 0.5]]


def test_several_ranks_without_torch_distributed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 ranks without torch.distributed"):
        Ranks.of(2)


class Noting(LightningModule):
    """Learns the mean of 1 over the text of a step, and writes what it saw into a file for each rank."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[Any]] = {"batches": [], "gradients": [], "packs": []}

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        assert batch.counts is not None
        assert batch.step_counts is not None
        self.seen["batches"].append([*batch.position, *batch.ids])
        return self.weight * batch.counts.text / batch.step_counts[0]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        assert self.weight.grad is not None
        self.seen["gradients"].append(self.weight.grad.item())

    def on_train_epoch_end(self) -> None:
        self.seen["packs"].append(sum(1 for _ in self.trainer.train_dataloader.dataset))  # type: ignore[union-attr]

    def on_train_end(self) -> None:
        (self.folder / f"{self.global_rank}.json").write_text(json.dumps(self.seen))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, to start quickly")
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
    packs = list(zip(*(rank["packs"] for rank in ranks), strict=True))
    assert any(one // 2 != other // 2 for one, other in packs), "the scenes no longer make the case"
    steps = [min(one, other) // 2 for one, other in packs]
    for rank in ranks:
        places = [tuple(batch[:2]) for batch in rank["batches"]]
        assert places == [(epoch, number) for epoch in (0, 1) for number in range(2 * steps[epoch])]
        assert rank["gradients"] == pytest.approx([1.0] * sum(steps))
    seen = [name for rank in ranks for epoch, _, *names in rank["batches"] if epoch == 0 for name in names]
    assert len(set(seen)) == len(seen)


def test_a_limit_ends_the_last_window_where_lightning_steps() -> None:
    """Windows of 3, at most 4 batches: the second window counts one batch, not three."""
    batches = [batch(str(number), 10 + number) for number in range(9)]
    found = [
        [one.ids[0] for one in window.batches] + [window.batches[0].step_counts[0].item() * 3]  # type: ignore[index]
        for window in windows(batches, lambda: 3, Ranks(), limit=4)
    ]
    assert found == [["0", "1", "2", pytest.approx(33)], ["3", pytest.approx(13)]]
