"""`Sharded`: one strategy for FSDP2, with copies between nodes (HSDP), tensor or context parallelism."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import torch
from lightning import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import StrategyRegistry
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from v1lit.backbones.adapters.config import NONE, QLORA, AdapterConfig
from v1lit.backbones.adapters.folder import base_config
from v1lit.backbones.config import BackboneConfig
from v1lit.errors import OptionError
from v1lit.parallel.fetch import fetch_weights
from v1lit.parallel.fill import fill
from v1lit.parallel.sharding import CONTEXT, COPIES, SHARDS, TENSOR, Meshes, shard_model
from v1lit.parallel.tensor_parallel import IndivisibleError
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import POINT_AND_COPY, RevisitConfig
from v1lit.training.folder_strategy import FolderStrategy

GROUP = "trainer.strategy.init_args"
Size = int | Literal["all", "node"]
"""Ranks that something is divided over: a number, those of a node, or all."""


class ShardedPrecision(Precision):
    """`bf16-mixed` of a sharded model: float32 shards, gathered as bfloat16. Nothing is left to autocast."""

    precision: Literal["bf16-mixed"] = "bf16-mixed"


class Sharded(FolderStrategy):
    """Divides weights, gradients and moments over ranks, and gathers a layer at a time (FSDP2).

    With `trainer.precision=bf16-mixed` the shards are float32, layers are gathered and compute in bfloat16,
    and gradients are reduced in float32. Of accumulated micro-batches only the last one's backward pass
    reduces gradients; until then every rank holds a whole gradient.

    Args:
        shard: ranks that the model is divided over: all, those of a node, or a number. Further ranks have
            copies of it, whose gradients are averaged.
        tensor: of these, ranks of one node that compute the same batches, each with its part of every matrix
            of the language layers: a number, or those of a node. They count as one reader of data.
        context: instead of `tensor`, ranks of one node that compute the same packed rows together, each with
            its part of the tokens: a number, or those of a node. They count as one reader of data.
        reduce_every_micro_batch: reduce gradients in every backward pass, so that no rank holds a whole one.
        process_group_backend: such as "nccl" or "gloo"; None for the device's own.
        timeout: seconds after which ranks that wait for another one give up.
    """

    def __init__(
        self,
        shard: Size = "all",
        tensor: Size = 1,
        context: Size = 1,
        reduce_every_micro_batch: bool = False,
        process_group_backend: str | None = None,
        timeout: float = 1800.0,
    ) -> None:
        super().__init__(process_group_backend=process_group_backend, timeout=timedelta(seconds=timeout))
        self.shard = shard
        self.tensor = tensor
        self.context = context
        self.reduce_every_micro_batch = reduce_every_micro_batch

    def setup_environment(self) -> None:
        self.precision_plugin = self._own_precision()
        # What the base class would make is one of tensor parallelism inside a node.
        self._data_parallel_size, self._tensor_parallel_size = self._world(), 1
        super().setup_environment()
        self._device_mesh = self._mesh()

    def _world(self) -> int:
        return self.num_nodes * self.num_processes

    def _mesh(self) -> DeviceMesh:
        world, size = self._world(), self._ranks(self.shard)
        if size < 1 or world % size:
            why = f"{world} ranks cannot be divided by it; give a divisor, node or all"
            raise OptionError("shard", self.shard, why, GROUP)
        if self._ranks(self.tensor) != 1 and self._ranks(self.context) != 1:
            why = f"ranks share matrices or tokens, not both, and tensor is {self.tensor}; leave one out"
            raise OptionError("context", self.context, why, GROUP)
        name, option = self._inner
        inner = self._ranks(option)
        if inner < 1 or self.num_processes % inner or size % inner:
            why = (
                f"the {self.num_processes} ranks of a node, and the {size} that the model is divided over, "
                "cannot be divided by it; give a divisor of both"
            )
            raise OptionError(name, option, why, GROUP)
        shape = (world // size, size // inner, inner)
        return init_device_mesh(self.root_device.type, shape, mesh_dim_names=(COPIES, SHARDS, name))

    @property
    def _inner(self) -> tuple[str, Size]:
        """What ranks that compute the same batches share, by the option's name, and the option."""
        return (TENSOR, self.tensor) if self._ranks(self.context) == 1 else (CONTEXT, self.context)

    def _ranks(self, size: Size) -> int:
        named = {"all": self._world(), "node": self.num_processes}
        return named[size] if isinstance(size, str) else size

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        same = self._ranks(self._inner[1])
        return {"num_replicas": self.world_size // same, "rank": self.global_rank // same}

    # ------------------------------------------------------------------ precision

    def _own_precision(self) -> Precision:
        plugin = self.precision_plugin
        if not isinstance(plugin, MixedPrecision):
            return plugin
        if plugin.precision != "bf16-mixed":
            why = "a sharded model has no loss scale\nuse bf16-mixed"
            raise OptionError("precision", plugin.precision, why, "trainer")
        return ShardedPrecision()

    @property
    def compute_dtype(self) -> torch.dtype | None:
        return torch.bfloat16 if isinstance(self.precision_plugin, ShardedPrecision) else None

    # ------------------------------------------------------------------ the model

    def build(
        self,
        backbone: BackboneConfig,
        pointer: PointerConfig,
        revisit: RevisitConfig = POINT_AND_COPY,
        begin_from: str | None = None,
        adapter: AdapterConfig = NONE,
    ) -> PointAndCopyModel:
        fetch_weights(base_config(backbone).weights, self.local_rank)
        with torch.random.fork_rng(devices=[]):
            model = PointAndCopyModel.build(backbone, pointer, revisit, empty=True, adapter=adapter)
        if model.adapter:
            self._refuse_adapter(model.adapter)
        try:
            shard_model(model, Meshes.of(self.device_mesh), self.compute_dtype)
        except IndivisibleError as error:
            raise OptionError(*self._inner, str(error), GROUP) from error
        fill(model, backbone, self.root_device, begin_from=begin_from)
        return model

    def _refuse_adapter(self, adapter: AdapterConfig) -> None:
        if adapter.kind == QLORA:
            why = "weights in 4 bits are not divided over ranks\ntake lora, or trainer.strategy=ddp"
            raise OptionError("kind", adapter.kind, why, f"model.{adapter.GROUP}")
        if self._ranks(self.tensor) != 1:
            why = "ranks cannot share the matrices of layers with adapters\nset 1, or use context"
            raise OptionError("tensor", self.tensor, why, GROUP)

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Keep the backward pass inside from reducing gradients: another micro-batch of the step follows."""
        module: Any = self.lightning_module
        roots = [] if self.reduce_every_micro_batch else [module.model]
        for root in roots:
            root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            for root in roots:
                root.set_requires_gradient_sync(True)


NAMES: dict[str, dict[str, Any]] = {
    "fsdp2": {"shard": "all"},
    "hsdp": {"shard": "node"},
    "fsdp2_tp": {"shard": "all", "tensor": "node"},
}
"""What `trainer.strategy` may be called, and with which options."""

for _name, _options in NAMES.items():
    StrategyRegistry.register(_name, Sharded, description=f"v1lit: {_name}", override=True, **_options)


def sharded_strategy(trainer: Trainer | None) -> FolderStrategy | None:
    """The trainer's strategy, where it divides the model over ranks."""
    strategy = None if trainer is None else trainer.strategy
    return strategy if isinstance(strategy, FolderStrategy) else None


def compute_dtype(trainer: Trainer, weights: torch.dtype) -> torch.dtype:
    """In which type a run computes whose model has weights of this type."""
    if (strategy := sharded_strategy(trainer)) is not None:
        return strategy.compute_dtype or weights
    kind = trainer.strategy.root_device.type
    with trainer.precision_plugin.forward_context():
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weights
