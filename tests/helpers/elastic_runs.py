"""Runs of several processes on small shards, each of which notes what it trained on."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file, save_file

from helpers.shard_cases import jpeg
from v1lit.backbones.config import BackboneConfig
from v1lit.data.config import EncodingConfig, SourceConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.data.encode.batch import Batch
from v1lit.data.example import Example, Message
from v1lit.data.images import read_header
from v1lit.data.shards import ShardWriter, write_index
from v1lit.training.checkpoints import LastCheckpoint
from v1lit.training.lightning_internals import align
from v1lit.training.steps import total_steps
from v1lit.training.validate_at_end import ValidateAtEnd

BACKBONE = BackboneConfig("qwen2_5_vl")
LONGEST = 120
"""Tokens of the longest example."""
Ids = tuple[str, ...]


def example(id: str, number: int) -> Example:
    """A picture or none, and an answer whose length differs from that of its neighbours."""
    images = (read_header(jpeg(number)),) if number % 3 else ()
    answer = "Nowhere. " * (1 + number * 7 % 11)
    return Example(
        id=id,
        images=images,
        messages=(Message("user", "<image>\n" * len(images) + "Where?"), Message("assistant", answer)),
    )


def write_shards(folder: Path, count: int, *, name: str = "e", per_shard: int = 5) -> list[str]:
    """A folder of shards with an index; returns the names of its examples."""
    ids = [f"{name}{number:03}" for number in range(count)]
    with ShardWriter(folder, max_examples=per_shard) as writer:
        for number, id in enumerate(ids):
            writer.write(example(id, number))
    write_index(folder, writer.shards)
    return ids


def make_data(location: Path | str, **options: Any) -> V1DataModule:
    """The data module of a small backbone on a folder that holds `train/`, and perhaps `val/`."""
    defaults: dict[str, Any] = {
        "source": SourceConfig("shards", str(location)),
        "encoding": EncodingConfig(max_tokens=LONGEST, coordinates=False),
        "batch_size": 2,
        "seed": 3,
    }
    return V1DataModule(BACKBONE, **{**defaults, **options})


# ------------------------------------------------------------------ what a run was


@dataclass(frozen=True)
class Step:
    """An optimizer step of all ranks."""

    epoch: int
    """Of the data."""
    counted: int
    """The epoch by Lightning's count."""
    number: int
    """Optimizer steps before it."""
    rate: float
    """Learning rate."""
    batches: list[Ids]
    """Names of the examples, by micro-batch."""

    @property
    def ids(self) -> list[str]:
        return [id for batch in self.batches for id in batch]


@dataclass
class Run:
    """What happened on all ranks."""

    steps: list[Step] = field(default_factory=list)
    validations: list[int] = field(default_factory=list)
    """Steps that were done when a validation began."""
    epochs: int = 0
    """That Lightning counts as done at the end."""
    total: int | None = None
    """Steps that the whole run was expected to have."""
    ended: bool = False
    weights: list[dict[str, torch.Tensor]] = field(default_factory=list)
    """Of every rank, at the end."""

    @property
    def batches(self) -> list[list[Ids]]:
        return [step.batches for step in self.steps]

    def epoch(self, number: int) -> list[str]:
        """Examples of an epoch in the order in which they were read."""
        return ids_of(step for step in self.steps if step.epoch == number)


def ids_of(steps: Iterable[Step]) -> list[str]:
    """Examples of steps in order."""
    return [id for step in steps for id in step.ids]


def each_once(read: Iterable[str], ids: Iterable[str]) -> bool:
    """Whether all of `ids` were read once, and nothing else."""
    return Counter(read) == Counter(ids)


# ------------------------------------------------------------------ training


class Notes(Callback):
    """Writes what a rank does into a file, line by line, and the weights at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.batches: list[tuple[int, int, Ids]] = []

    def _note(self, trainer: Trainer, kind: str, **values: Any) -> None:
        with (self.folder / f"{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps({"kind": kind, **values}) + "\n")

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._note(trainer, "begin", total=total_steps(trainer))

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        assert batch.read is not None
        self.batches.append((batch.read.epoch, batch.read.micro_batch, batch.ids))

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        (epoch,) = {epoch for epoch, _, _ in self.batches}
        self._note(
            trainer,
            "step",
            epoch=epoch,
            counted=trainer.current_epoch,
            number=trainer.global_step,
            rate=optimizer.param_groups[0]["lr"],
            batches=[ids for _, _, ids in sorted(self.batches)],  # by the plan; a rank takes heavy ones first
        )
        self.batches = []

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._note(trainer, "validation", number=trainer.global_step)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._note(trainer, "end", epochs=trainer.current_epoch)
        weights = {name: p.detach().clone().contiguous() for name, p in module.named_parameters()}
        save_file(weights, self.folder / f"{trainer.global_rank}.safetensors")


def read_notes(folder: Path, ranks: int) -> Run:
    """Put the notes of all ranks together, and check that they agree."""
    run = Run()
    files = [(folder / f"{rank}.jsonl").read_text().splitlines() for rank in range(ranks)]
    for lines in itertools.zip_longest(*files):
        notes = [json.loads(line) for line in lines if line is not None]
        assert len(notes) == ranks, f"only {len(notes)} of {ranks} ranks came to {notes[0]}"
        micro_batches = list(zip(*(note.pop("batches", []) for note in notes), strict=True))
        assert all(note == notes[0] for note in notes), notes
        _add(run, notes[0], [tuple(batch) for micro_batch in micro_batches for batch in micro_batch])
    run.weights = [load_file(folder / f"{rank}.safetensors") for rank in range(ranks)]
    return run


def _add(run: Run, note: dict[str, Any], batches: list[Ids]) -> None:
    kind = note.pop("kind")
    if kind == "step":
        run.steps.append(Step(**note, batches=batches))
    elif kind == "validation":
        run.validations.append(note["number"])
    elif kind == "begin":
        run.total = note["total"]
    else:
        run.epochs, run.ended = note["epochs"], True


class Mean(LightningModule):
    """Learns one number; with the right counts, every step's gradient is 1 (0 where all examples failed)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.gradient = 0.0

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        assert batch.counts is not None
        assert batch.step_counts is not None
        self.trainer.datamodule.consumed(batch)  # type: ignore[attr-defined]
        self.gradient = float(batch.step_counts[0] > 0)
        return self.weight * batch.counts.text / batch.step_counts[0].clamp(min=1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        pass

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        align(checkpoint, self.trainer.datamodule)  # type: ignore[attr-defined]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        assert self.weight.grad is not None
        assert self.weight.grad.item() == pytest.approx(self.gradient)

    def configure_optimizers(self) -> Any:
        total = total_steps(self.trainer) or 1000
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class SaveAt(Callback):
    """Writes checkpoints where a hook is called for these times, from 1 on, and stops after the last one."""

    def __init__(self, folder: Path, hook: str, times: tuple[int, ...], stop: bool = True) -> None:
        self.paths = {time: folder / f"{hook}-{time}.ckpt" for time in times}
        self.stop, self.calls = stop, 0

        def act(trainer: Trainer, *args: Any) -> None:
            if trainer.sanity_checking and hook != "on_sanity_check_end":
                return
            self.calls += 1
            if self.calls in self.paths:
                trainer.save_checkpoint(self.paths[self.calls])
                trainer.should_stop = self.stop and self.calls == max(self.paths)

        setattr(self, hook, act)

    @property
    def last(self) -> Path:
        return self.paths[max(self.paths)]


def fit(
    folder: Path,
    data: V1DataModule,
    *callbacks: Callback,
    module: LightningModule | None = None,
    ranks: int = 1,
    resume: Path | None = None,
    **options: Any,
) -> Run:
    """Train on that many processes, as `run_training` does but without logs; returns what happened."""
    folder.mkdir(parents=True, exist_ok=True)
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=90))
    several = {"devices": ranks, "strategy": strategy} if ranks > 1 else {"devices": 1}
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": True,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "default_root_dir": str(folder),
    }  # fmt: skip
    own = [Notes(folder), LastCheckpoint(folder, every=1_000_000), ValidateAtEnd()]
    torch.manual_seed(0)
    trainer = Trainer(**{**quiet, "max_epochs": 1, **several, **options}, callbacks=[*callbacks, *own])
    trainer.fit(module or Mean(), datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    return read_notes(folder, ranks)
