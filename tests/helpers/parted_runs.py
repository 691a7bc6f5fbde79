"""Runs in parts, each resumed by another strategy or on other ranks than the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from helpers.forked import run_ranks
from v1lit.training.checkpoints import LastCheckpoint, newest_checkpoint
from v1lit.training.deepspeed_strategy import DeepSpeedZero3
from v1lit.training.saved_state import read_checkpoint
from v1lit.training.strategies import Sharded

STEP = 4
"""Examples of an optimizer step, whatever ranks it has."""
TOTAL = 6
"""Steps of a run."""
IN_TWOS = ("tensor", "context")
"""Kinds of runs in which two ranks compute the same batches."""
Notes = list[tuple[float, tuple[str, ...]]]
"""Loss and examples of every micro-batch of a rank."""


class Seen(Callback):
    """Notes micro-batches, and stops after a step."""

    def __init__(self, until: int) -> None:
        self.until = until
        self.notes: Notes = []

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.notes.append((float(outputs["loss"]), batch.ids))
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.until


def train(
    make_module: Any, make_data: Any, folder: Path, ranks: int, kind: str, until: int, resume: bool
) -> Notes:
    """Steps up to `until` on one rank of a run: its micro-batches."""
    strategy: Any = "auto"
    inner = {kind: 2} if kind in IN_TWOS else {}
    readers = ranks // 2 if inner else ranks
    if kind == "deepspeed":
        strategy = DeepSpeedZero3(keep_whole=0, process_group_backend="gloo", timeout=50)
    elif kind != "plain":
        strategy = Sharded(**inner, process_group_backend="gloo", timeout=50)
    elif ranks > 1:
        strategy = DDPStrategy(process_group_backend="gloo")
    seen, last = Seen(until), LastCheckpoint(folder, every=1)
    trainer = Trainer(
        accelerator="cpu", devices=ranks, strategy=strategy, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(folder), max_steps=TOTAL,
        accumulate_grad_batches=STEP // readers, limit_val_batches=0, callbacks=[seen, last],
    )  # fmt: skip
    torch.manual_seed(0)
    path = last.path if resume else None
    trainer.fit(
        make_module(), datamodule=make_data(batch_size=1), ckpt_path=path, weights_only=resume or None
    )
    return seen.notes


def together(ranks: list[Notes]) -> tuple[list[float], list[list[str]]]:
    """Of all ranks, the loss of every step and its examples; which rank has which is no part of the order."""
    micro_batches = [note for notes in zip(*ranks, strict=True) for note in notes]
    steps = [micro_batches[at : at + STEP] for at in range(0, len(micro_batches), STEP)]
    losses = [sum(loss for loss, _ in step) / len(ranks) for step in steps]
    return losses, [sorted(id for _, ids in step for id in ids) for step in steps]


def in_parts(make: tuple[Any, Any], folder: Path, parts: list[tuple[int, str, int]]) -> Any:
    """A run in parts, each of (ranks, kind, last step): losses, examples, and the weights at the end."""
    losses: list[float] = []
    examples: list[list[str]] = []
    for number, (ranks, kind, until) in enumerate(parts):
        ended = run_ranks(ranks, train, *make, folder, ranks, kind, until, number > 0)
        assert newest_checkpoint(folder.parent) == folder / "last.ckpt"
        assert (folder / "last.ckpt").is_dir() == (kind != "plain")
        if kind in IN_TWOS:
            assert ended[::2] == ended[1::2]
            ended = ended[::2]
        more = together(ended)
        losses, examples = losses + more[0], examples + more[1]
    return losses, examples, dict(read_checkpoint(folder / "last.ckpt")["state_dict"])


def assert_no_way_matters(make: Any, folder: Path, ways: dict[str, list[tuple[int, str, int]]]) -> None:
    """That runs in parts, by name, take the steps of one that is whole on one rank, to its weights.

    A part has ranks, a kind, and the step up to which it goes.
    """
    losses, examples, weights = in_parts(make, folder / "one/checkpoints", [(1, "plain", TOTAL)])
    for name, parts in ways.items():
        found = in_parts(make, folder / name / "checkpoints", parts)
        assert found[1] == examples, f"{name}: other examples in a step"
        assert found[0] == pytest.approx(losses, abs=1e-5), name
        for key, value in weights.items():
            torch.testing.assert_close(found[2][key], value, rtol=1e-4, atol=1e-5, msg=f"{name}: {key}")
