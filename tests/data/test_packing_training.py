"""Packed batches in a Trainer: accumulated steps, and resuming without losing or repeating one."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.qwen import Qwen25VL
from v1lit.data.config import EncodingConfig, PackingConfig, SourceConfig, StreamConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.data.encode.batch import Batch
from v1lit.data.synthetic import synthesize
from v1lit.training.lightning_internals import align

LENGTH = 330
"""Three or four of the scenes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for split, examples in (("train", 24), ("val", 3)):
        synthesize(folder / split, examples=examples, image_size=(112, 112), workers=1, progress=False)
    return folder


@pytest.fixture
def make_data(folder: Path) -> Any:
    def make(**options: Any) -> V1DataModule:
        return V1DataModule(
            BackboneConfig("qwen2_5_vl"),
            source=SourceConfig("shards", str(folder)),
            encoding=EncodingConfig(max_tokens=LENGTH, coordinates=False),
            **{"packing": PackingConfig(LENGTH), **options},
        )

    return make


class Mean(LightningModule):
    """Learns the mean of 1 over the text positions of a step: its gradient is 1 if the counts are right."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[tuple[str, ...]] = []
        self.steps: list[tuple[str, ...]] = []
        self.gradients: list[float] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        assert batch.counts is not None
        assert batch.step_counts is not None
        self.trainer.datamodule.consumed(batch)  # type: ignore[attr-defined]
        self.batches.append(batch.ids)
        return self.weight * batch.counts.text / batch.step_counts[0]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        align(checkpoint, self.trainer.datamodule)  # type: ignore[attr-defined]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        assert self.weight.grad is not None
        self.gradients.append(self.weight.grad.item())
        self.steps.append(self.batches[-1])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert batch.segment_lengths is not None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        _ = self.trainer.estimated_stepping_batches  # fetches the first batch, before counters are restored
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Save(Callback):
    """Writes a checkpoint where `hook` is called for the `count`-th time, and stops there."""

    def __init__(self, path: Path, hook: str, count: int) -> None:
        self.path, self.calls = path, 0

        def act(trainer: Trainer, *args: Any) -> None:
            if trainer.sanity_checking:
                return
            self.calls += 1
            if self.calls == count:
                trainer.save_checkpoint(path)
                trainer.should_stop = True

        setattr(self, hook, act)


def fit(
    data: V1DataModule, path: Path, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> Mean:
    module = Mean()
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "default_root_dir": str(path),
    }  # fmt: skip
    defaults = {"max_epochs": 3, "accumulate_grad_batches": 2}
    trainer = Trainer(**{**quiet, **defaults, **options}, callbacks=list(callbacks))
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    return module


STOPS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "inside a window": ("on_train_batch_end", 3, {}),
    "between two windows": ("on_train_batch_end", 4, {}),
    "at the last batch of an epoch": ("on_train_batch_end", 0, {}),
    "behind the last batch": ("on_train_epoch_end", 1, {}),
    "after a validation inside a window": ("on_validation_end", 1, {"val_check_interval": 3}),
    "after the validation at the end of an epoch": ("on_validation_end", 1, {}),
    "inside the second epoch": ("on_train_batch_end", 9, {}),
    "at the end of an epoch cut short": ("on_train_batch_end", 4, {"limit_train_batches": 4}),
    "inside the second epoch, steps being the limit": (
        "on_train_batch_end",
        9,
        {"max_steps": 10, "max_epochs": -1},
    ),
}
"""Where a checkpoint is written: hook, its how-manieth call (0: the last of the first epoch), options."""


def first_epoch(batches: list[tuple[str, ...]]) -> int:
    """Batches until a scene comes again."""
    seen: set[str] = set()
    for number, ids in enumerate(batches):
        if seen & {*ids}:
            return number
        seen.update(ids)
    return len(batches)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "num_workers"),
    [*((stop, 0) for stop in STOPS), ("inside a window", 2), ("at the last batch of an epoch", 2)],
)
def test_a_resumed_run_goes_on_with_the_very_next_pack(
    make_data: Any, tmp_path: Path, stop: str, num_workers: int
) -> None:
    hook, count, options = STOPS[stop]
    path = tmp_path / "part.ckpt"
    whole = fit(make_data(num_workers=num_workers), tmp_path, **options)
    save = Save(path, hook, count or first_epoch(whole.batches))
    part = fit(make_data(num_workers=num_workers), tmp_path, save, **options)
    rest = fit(make_data(num_workers=num_workers), tmp_path, resume=path, **options)
    assert part.batches
    assert rest.batches
    # Of a step that was not finished, the batches come again: their gradients were in no checkpoint.
    finished = part.batches[: options.get("accumulate_grad_batches", 2) * len(part.steps)]
    assert finished + rest.batches == whole.batches
    assert part.steps + rest.steps == whole.steps
    gradients = whole.gradients + part.gradients + rest.gradients
    assert gradients == pytest.approx([1.0] * len(gradients))


def test_every_scene_once_per_epoch_in_rows_that_are_full(make_data: Any) -> None:
    loader = make_data().train_dataloader()
    rows = list(loader)
    assert sorted(chain(*(batch.ids for batch in rows))) == [f"shapes-s0-{number:07}" for number in range(24)]
    assert all(batch.read.last and batch.read.micro_batch == 0 for batch in rows)
    assert max(batch.real_tokens for batch in rows) <= LENGTH
    assert sum(batch.real_tokens for batch in rows[:-1]) > 0.95 * LENGTH * (len(rows) - 1)


def test_the_last_step_of_an_epoch_may_be_smaller(make_data: Any, tmp_path: Path) -> None:
    """Three micro-batches with rows of their own: two run out before the third, and give blank batches."""
    module = fit(make_data(), tmp_path, max_epochs=1, accumulate_grad_batches=3)
    assert sorted(chain(*module.batches)) == [f"shapes-s0-{number:07}" for number in range(24)]
    assert len(module.batches) == 3 * len(module.steps)
    assert module.gradients == pytest.approx([1.0] * len(module.steps))
    blank = fit(make_data(), tmp_path, max_epochs=1, accumulate_grad_batches=7)
    assert sorted(chain(*blank.batches)) == sorted(chain(*module.batches))
    assert () in blank.batches
    assert blank.gradients == pytest.approx([1.0] * len(blank.steps))


def test_or_it_is_dropped_and_that_is_said(make_data: Any, tmp_path: Path, caplog: Any) -> None:
    drop = StreamConfig(tail="drop")
    module = fit(make_data(stream=drop), tmp_path, max_epochs=1, accumulate_grad_batches=7)
    assert len(module.batches) == 7 * len(module.steps)
    assert () not in module.batches
    used = sum(map(len, module.batches))
    assert 0 < used < 24
    assert f"epoch 0: {24 - used} of 24 training examples are left over" in caplog.text
    with pytest.raises(
        ValueError, match=r"24 training examples do not fill one optimizer step of 25 batches"
    ):
        fit(make_data(stream=drop), tmp_path, accumulate_grad_batches=25)


def test_without_a_length_batches_are_flat_and_counted(make_data: Any) -> None:
    loader = make_data(packing=None, batch_size=5).train_dataloader()
    batches = list(loader)
    assert len(loader) == len(batches) == 5
    assert [len(batch.segment_lengths) for batch in batches] == [5, 5, 5, 5, 4]
    assert [batch.read.after.read for batch in batches] == [5, 10, 15, 20, 25]
    for batch in batches:
        assert batch.step_counts.tolist() == list(batch.counts)


def test_a_backbone_that_cannot_pack_gets_padded_batches_of_similar_length(
    make_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Qwen25VL, "packs", False, raising=False)
    data = make_data(packing=None, batch_size=4, group_by_length=6)
    batches = list(data.train_dataloader())
    assert all(batch.segment_lengths is None and batch.input_ids.shape[0] == 4 for batch in batches)
    padded = sum(batch.tokens for batch in batches) / sum(batch.real_tokens for batch in batches)
    assert padded < 1.06
    assert next(iter(data.val_dataloader())).segment_lengths is None
    for refuse in (make_data().train_dataloader, make_data().prepare_data):
        with pytest.raises(
            ValueError, match=r"data.packing.length is 330; the backbone 'qwen2_5_vl'.*group_by"
        ):
            refuse()


def test_the_number_of_packs_is_not_known(make_data: Any) -> None:
    with pytest.raises(TypeError, match="not known before"):
        len(make_data().train_dataloader())


def test_a_checkpoint_that_comes_too_late_is_refused(make_data: Any) -> None:
    data = make_data()
    first, second = islice(data.train_dataloader(), 2)
    data.consumed(first)
    state = data.state_dict()
    with pytest.raises(ValueError, match=r"trainer.max_epochs=-1"):
        data.load_state_dict(state)
    data.setup("fit")
    data.load_state_dict(state)
    assert next(iter(data.train_dataloader())).ids == second.ids
