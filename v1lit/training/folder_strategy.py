"""A strategy of which every rank saves and loads its own part of model and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from v1lit.backbones.adapters.config import NONE, AdapterConfig
from v1lit.backbones.config import BackboneConfig
from v1lit.data.loading.ranks import Ranks
from v1lit.parallel.folder_writer import FolderWriter
from v1lit.parallel.gradients import total_norm
from v1lit.parallel.weight_stream import shared_names
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import POINT_AND_COPY, RevisitConfig
from v1lit.training.lightning_internals import weights_of
from v1lit.training.named_state import parameter_names
from v1lit.training.saved_state import load_parts, split


class FolderStrategy(ModelParallelStrategy):
    """Writes checkpoints as folders, in the background, and loads folders and single files.

    Nothing is gathered: a rank copies its part to the CPU and writes it, and reads what it needs. Arguments
    are those of Lightning's `ModelParallelStrategy`.
    """

    _writer: FolderWriter | None = None

    @property
    def writer(self) -> FolderWriter:
        """What writes the folders; to be asked for on all ranks, once ranks can talk."""
        if self._writer is None:
            assert self.lightning_module is not None
            ranks = Ranks.of(self.lightning_module.trainer)
            self._writer = FolderWriter(self.global_rank, ranks.gather_processes)
        return self._writer

    def build(
        self,
        backbone: BackboneConfig,
        pointer: PointerConfig,
        revisit: RevisitConfig = POINT_AND_COPY,
        begin_from: str | None = None,
        adapter: AdapterConfig = NONE,
    ) -> PointAndCopyModel:
        """A model that is divided over the ranks; seed torch before, alike on all ranks.

        begin_from: folder of an exported model with other weights than the backbone's.

        Raises what `load_backbone` raises.
        """
        raise NotImplementedError

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """In which type the model computes; None for that of the weights."""
        return None

    def gradient_norm(self) -> Tensor:
        """`[]`: of all gradients before they are clipped, the same on every rank; waits for the ranks."""
        assert self.lightning_module is not None
        return total_norm(p.grad for p in self.lightning_module.parameters() if p.grad is not None)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return _inner(optimizer).state_dict()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        refuse_place(filepath, storage_options)
        module = self.lightning_module
        assert module is not None
        names = [parameter_names(_inner(optimizer), module) for optimizer in self.optimizers]
        aliases = {
            name: other
            for name, other in shared_names(module).items()
            if other in weights_of(checkpoint)  # those of a frozen backbone may be left out
        }
        self.writer.begin(Path(filepath), *split(checkpoint, names, aliases))

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        module = self.lightning_module
        assert module is not None
        fits = module.trainer.state.fn == TrainerFn.FITTING
        optimizers = [_inner(optimizer) for optimizer in self.optimizers] if fits else []
        return load_parts(Path(self.broadcast(checkpoint_path)), module, optimizers, module.strict_loading)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        pass  # `load_checkpoint` has done it

    def remove_checkpoint(self, filepath: str | Path) -> None:
        self.writer.settle()  # what takes its place must be there first
        super().remove_checkpoint(filepath)

    def teardown(self) -> None:
        module = self.lightning_module
        if self._writer is not None and module is not None and not module.trainer.interrupted:
            self._writer.settle()
        super().teardown()


def refuse_place(filepath: str | Path, storage_options: Any) -> None:
    """Raise ValueError for places of checkpoints that are no folder of a file system."""
    if storage_options is not None or "://" in str(filepath):
        raise ValueError(f"{filepath}: a sharded model is saved in folders that all nodes see")


def writer_of(trainer: Trainer) -> FolderWriter | None:
    """What writes the checkpoints of a run in the background, where something does."""
    return trainer.strategy.writer if isinstance(trainer.strategy, FolderStrategy) else None


def _inner(optimizer: Optimizer) -> Optimizer:
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
