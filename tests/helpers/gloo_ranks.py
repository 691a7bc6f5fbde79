"""Ranks of a test: forked processes that are one gloo group, and models that lie over them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from helpers.forked import run_all


def on_ranks(count: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `function(rank, *arguments)` on that many ranks; what each returned."""
    store = folder / f"store-{len(list(folder.glob('store-*')))}"
    return run_all(_on_rank, [(rank, count, store, function, arguments) for rank in range(count)])


def gather(own: Any) -> list[Any]:
    """What every rank has."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return everyone


def _on_rank(
    rank: int, count: int, store: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(store), count), rank=rank, world_size=count,
        timeout=timedelta(seconds=30),
    )  # fmt: skip
    try:
        dist.barrier()  # a rank that is done and gone before others have met all of them breaks their meeting
        return function(rank, *arguments)
    finally:
        dist.destroy_process_group()


class Small(nn.Module):
    """Two matrices that split unevenly, one that two ranks alone have a part of, a tied head, two buffers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.up = nn.Linear(6, 9)
            self.down = nn.Linear(9, 6, bias=False)
            self.narrow = nn.Linear(6, 2)
            self.head = nn.Linear(9, 6, bias=False)
        self.head.weight = self.down.weight
        self.register_buffer("count", torch.tensor(3.0))
        self.register_buffer("table", torch.arange(5, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up(x).relu()
        return self.narrow(self.down(up)) + self.head(up).sum()


def lay_out(module: Any, layout: str, count: int) -> Any:
    """Spread a module over ranks: `fsdp`, `hsdp` (in 2 copies) or `fsdp_tp` (tensors over 2)."""
    if layout == "fsdp":
        fully_shard(module, mesh=init_device_mesh("cpu", (count,)))
    elif layout == "hsdp":
        names = ("replicate", "shard")
        fully_shard(module, mesh=init_device_mesh("cpu", (2, count // 2), mesh_dim_names=names))
    elif layout == "fsdp_tp":
        mesh = init_device_mesh("cpu", (count // 2, 2), mesh_dim_names=("data", "tensor"))
        plan: dict[str, Any] = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(module, mesh["tensor"], plan)
        if isinstance(module, Small):
            module.head.weight = module.down.weight
        fully_shard(module, mesh=mesh["data"])
    return module
