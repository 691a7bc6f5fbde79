"""Checkpoints of sharded runs: resumed by any strategy on any number of ranks, as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.forked import needs_fork, run_ranks
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from v1lit.training.checkpoints import LastCheckpoint, newest_checkpoint
from v1lit.training.saved_state import read_checkpoint
from v1lit.training.strategies import Sharded

pytestmark = pytest.mark.dependencies
STEP = 4
"""Examples of an optimizer step, whatever ranks it has."""
TOTAL = 6


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
    if kind == "sharded":
        strategy = Sharded(process_group_backend="gloo", timeout=50)
    elif ranks > 1:
        strategy = DDPStrategy(process_group_backend="gloo")
    seen, last = Seen(until), LastCheckpoint(folder, every=1)
    trainer = Trainer(
        accelerator="cpu", devices=ranks, strategy=strategy, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(folder), max_steps=TOTAL,
        accumulate_grad_batches=STEP // ranks, limit_val_batches=0, callbacks=[seen, last],
    )  # fmt: skip
    torch.manual_seed(0)
    path = last.path if resume else None
    trainer.fit(
        make_module(), datamodule=make_data(batch_size=1), ckpt_path=path, weights_only=resume or None
    )
    return seen.notes


def together(ranks: list[Notes]) -> tuple[list[float], list[str]]:
    """Of all ranks, the loss of every step, and the examples in the order of the data."""
    micro_batches = [note for notes in zip(*ranks, strict=True) for note in notes]
    losses = [loss for loss, _ in micro_batches]
    steps = [sum(losses[at : at + STEP]) for at in range(0, len(losses), STEP)]
    return [loss / len(ranks) for loss in steps], [id for _, ids in micro_batches for id in ids]


def in_parts(make: tuple[Any, Any], folder: Path, parts: list[tuple[int, str, int]]) -> Any:
    """A run in parts, each of (ranks, kind, last step): losses, examples, and the weights at the end."""
    losses: list[float] = []
    examples: list[str] = []
    for number, (ranks, kind, until) in enumerate(parts):
        ended = run_ranks(ranks, train, *make, folder, ranks, kind, until, number > 0)
        assert newest_checkpoint(folder.parent) == folder / "last.ckpt"
        assert (folder / "last.ckpt").is_dir() == (kind == "sharded")
        more = together(ended)
        losses, examples = losses + more[0], examples + more[1]
    return losses, examples, dict(read_checkpoint(folder / "last.ckpt")["state_dict"])


@needs_fork
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_goes_from_ranks_to_ranks_and_strategy_to_strategy(
    make_module: Any, make_data: Any, tmp_path: Path
) -> None:
    make = make_module, make_data
    losses, examples, weights = in_parts(make, tmp_path / "one/checkpoints", [(1, "plain", TOTAL)])
    ways = {
        "4-2-1": [(4, "sharded", 2), (2, "sharded", 4), (1, "plain", 6)],
        "ddp-fsdp-ddp": [(2, "plain", 2), (2, "sharded", 4), (2, "plain", 6)],
        "1-4": [(1, "plain", 3), (4, "sharded", 6)],
    }
    for name, parts in ways.items():
        found = in_parts(make, tmp_path / name / "checkpoints", parts)
        assert found[1] == examples, f"{name}: other data, or another order"
        assert found[0] == pytest.approx(losses, abs=1e-5), name
        for key, value in weights.items():
            torch.testing.assert_close(found[2][key], value, rtol=1e-4, atol=1e-5, msg=f"{name}: {key}")
