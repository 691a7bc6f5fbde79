"""Accumulated and distributed batches of unequal content make the step of one big batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import Callback

from v1lit.pointer.config import PointerConfig
from v1lit.revisit.config import RevisitConfig


class FirstStep(Callback):
    """Notes the gradients of the first optimizer step and stops."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if not self.gradients:
            self.gradients = {
                name: parameter.grad.clone()
                for name, parameter in module.named_parameters()
                if parameter.grad is not None
            }


FIRST_COUNTS = PointerConfig(first_pointer_weight=5.0)
SEPARATE = PointerConfig(loss="separate", z_weight=0.0)


@pytest.mark.parametrize(
    ("pointer", "revisit"),
    [
        (PointerConfig(), RevisitConfig()),
        (FIRST_COUNTS, RevisitConfig()),
        (SEPARATE, RevisitConfig()),
        (FIRST_COUNTS, RevisitConfig("multi_patch", {"weight": 3.0})),
        (SEPARATE, RevisitConfig("multi_patch")),
    ],
    ids=["published", "first pointers count more", "separate", "regions", "separate with regions"],
)
def test_accumulated_batches_make_the_step_of_one_big_batch(
    make_data: Any, make_module: Any, make_trainer: Any, pointer: PointerConfig, revisit: RevisitConfig
) -> None:
    found = []
    for batch_size, accumulate in ((6, 1), (2, 3)):
        note = FirstStep()
        trainer = make_trainer(
            max_steps=1, accumulate_grad_batches=accumulate, limit_val_batches=0, callbacks=[note]
        )
        data = make_data(batch_size=batch_size, revisit=revisit)
        trainer.fit(make_module(pointer=pointer, revisit=revisit), datamodule=data)
        found.append(note.gradients)
    whole, parts = found
    largest = max(value.abs().max().item() for value in whole.values())
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-5 * largest)


def test_the_last_window_of_an_epoch_counts_what_is_there(
    make_data: Any, make_module: Any, make_trainer: Any
) -> None:
    """24 examples in batches of 5: the last window holds two batches of 2."""
    seen = []

    class Windows(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            own = torch.tensor(batch.counts, dtype=torch.float32)
            seen.append((own, batch.step_counts))

    trainer = make_trainer(
        max_epochs=1, accumulate_grad_batches=2, limit_val_batches=0, callbacks=[Windows()]
    )
    trainer.fit(make_module(), datamodule=make_data(batch_size=5))
    assert len(seen) == 6
    for first, second in ((0, 1), (2, 3), (4, 5)):
        total = seen[first][0] + seen[second][0]
        assert torch.equal(seen[first][1] * 2, total)
        assert torch.equal(seen[second][1] * 2, total)
