"""Short training runs on a few examples, on one rank or two, that note what they were given."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from helpers.shard_cases import make, write
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor, load_processor
from v1lit.data.config import EncodingConfig, SourceConfig, StreamConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.data.encode.batch import Batch
from v1lit.data.lengths.length import measure
from v1lit.training.lightning_internals import align

BACKBONE = BackboneConfig("qwen2_5_vl")
ENCODING = EncodingConfig(max_tokens=120, coordinates=False)
_processors: list[Processor] = []


def processor() -> Processor:
    """That of the backbone, loaded once."""
    if not _processors:
        _processors.append(load_processor(BACKBONE))
    return _processors[0]


def tokens() -> int:
    """Length of every example that `written` writes."""
    return measure(make("e000"), processor(), ENCODING).tokens


def names(count: int, first: int = 0) -> list[str]:
    return [f"e{number:03}" for number in range(first, first + count)]


def written(folder: Path, count: int, per_shard: int = 5, first: int = 0) -> Path:
    """A folder of shards with an index."""
    return write(folder, names(count, first), max_examples=per_shard)


def without_index(folder: Path) -> Path:
    """Take the index of a folder away."""
    for path in [folder / "index.json", *folder.glob("*.index.safetensors")]:
        path.unlink()
    return folder


def make_data(folder: Path | str, tmp_path: Path, **options: Any) -> V1DataModule:
    """A data module on a folder with `train/`, and perhaps `val/`; its cache lies in `tmp_path`."""
    stream = {"cache": str(tmp_path / "cache"), **options.pop("stream", {})}
    defaults: dict[str, Any] = {
        "source": SourceConfig("shards", str(folder)),
        "encoding": ENCODING,
        "batch_size": 2,
        "seed": 3,
        "stream": StreamConfig(**stream),
    }
    data = V1DataModule(BACKBONE, **{**defaults, **options})
    data._processor = processor()
    return data


class Noting(LightningModule):
    """Learns next to nothing, and notes the names in every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[tuple[str, ...]] = []
        self.val_batches: list[tuple[str, ...]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        assert batch.counts is not None
        self.trainer.datamodule.consumed(batch)  # type: ignore[attr-defined]
        self.batches.append(batch.ids)
        return self.weight * batch.counts.text

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.val_batches.append(batch.ids)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        align(checkpoint, self.trainer.datamodule)  # type: ignore[attr-defined]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAfter(Callback):
    """Writes a checkpoint after that many steps, and stops there if it is to."""

    def __init__(self, steps: int, path: Path, stop: bool = False) -> None:
        self.steps, self.path, self.stop = steps, path, stop

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = trainer.should_stop or self.stop


def fit(
    data: V1DataModule, path: Path, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> Noting:
    module = Noting()
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "default_root_dir": str(path),
        "max_epochs": 1,
    }  # fmt: skip
    trainer = Trainer(**{**defaults, **options}, callbacks=list(callbacks))
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    return module


class WriteDown(Callback):
    """Every rank writes what it was given to a file of its own."""

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, Noting)
        path = Path(trainer.default_root_dir) / f"rank-{trainer.global_rank}.json"
        path.write_text(json.dumps(module.batches))


def fit_on_two_ranks(data: V1DataModule, path: Path, **options: Any) -> list[list[list[str]]]:
    """The batches of both ranks, which are processes of their own."""
    ddp = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=60))
    fit(data, path, WriteDown(), devices=2, strategy=ddp, **options)
    return [json.loads((path / f"rank-{rank}.json").read_text()) for rank in range(2)]


def listed(path: Path) -> list[dict[str, Any]]:
    """What a run has listed as skipped."""
    file = path / "skipped.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
