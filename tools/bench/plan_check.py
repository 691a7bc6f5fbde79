"""The memory that `v1lit plan` expects against the peak of real training steps, on a CPU.

Usage: python tools/bench/plan_check.py [--only NAME] [--json FILE]

Random models of 25 to 130 million parameters make two steps in one process, or in two with gloo. Measured are
the bytes of all live tensors of a rank, which is what a plan is about; not what the allocator of a device
adds. Every case runs in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from v1lit.backbones.config import BackboneConfig, Layered, Part
from v1lit.parallel.gradients import clip_by_norm
from v1lit.parallel.sharding import CONTEXT, COPIES, SHARDS, TENSOR, Meshes, shard_model
from v1lit.plan.architecture import model_config, model_on_meta, split_layers
from v1lit.plan.batch import BatchShape, ImageShape, PaperBatch
from v1lit.plan.gpu_kernels import Compute
from v1lit.plan.memory import Memory, Placement, fullest
from v1lit.plan.paper import LiveBytes
from v1lit.plan.timeline import record
from v1lit.plan.units import unit_sizes
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel

MIB = 2**20
STEPS = 2
LIMIT = 0.1
"""A plan may be this far off."""
POINTER = PointerConfig(loss_implementation="chunked")
SMALL: dict[str, Any] = {
    "hidden_size": 512, "layers": 6, "heads": 8, "intermediate_size": 1536,
    "vision_hidden_size": 256, "vision_layers": 4, "vision_heads": 4, "vision_intermediate_size": 512,
}  # fmt: skip
LARGE: dict[str, Any] = {
    "hidden_size": 1024, "layers": 8, "heads": 16, "intermediate_size": 2816,
    "vision_hidden_size": 512, "vision_layers": 4, "vision_heads": 8, "vision_intermediate_size": 1536,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A run."""

    family: str
    sizes: dict[str, Any]
    strategy: str
    ranks: int = 1
    mixed: bool = False
    recompute: bool = False
    accumulate: int = 1
    reduce_every: bool = False
    tensor: int = 1
    context: int = 1
    freeze: list[Part] = field(default_factory=list)
    examples: int = 2
    tokens: int = 400
    image: tuple[int, int] = (448, 336)

    @property
    def backbone(self) -> BackboneConfig:
        """The model."""
        layered: list[Layered] = ["language", "vision"] if self.recompute else []
        return BackboneConfig(
            self.family,
            tiny=self.sizes,
            freeze=self.freeze,
            gradient_checkpointing=layered,
        )

    @property
    def sharded(self) -> bool:
        """Whether a rank holds a share of every weight."""
        return self.strategy in ("fsdp2", "hsdp")

    @property
    def shards(self) -> int:
        """Ranks that a model is divided over."""
        return {"fsdp2": self.ranks, "hsdp": 2}.get(self.strategy, 1)

    @property
    def name(self) -> str:
        """In words."""
        words = [self.family, self.strategy, f"{self.ranks} ranks" if self.ranks > 1 else "1 process"]
        words += ["bf16-mixed" if self.mixed else "float32"]
        words += ["checkpointing"] * self.recompute + [f"accumulate {self.accumulate}"] * (
            self.accumulate > 1
        )
        words += [f"tensor {self.tensor}"] * (self.tensor > 1)
        words += [f"context {self.context}"] * (self.context > 1)
        words += ["reduce every"] * self.reduce_every + [f"freeze {part}" for part in self.freeze]
        return ", ".join(words)


CASES = (
    Case("qwen2_5_vl", SMALL, "one"),
    Case("qwen2_5_vl", SMALL, "one", mixed=True, recompute=True, accumulate=2),
    Case("internvl", SMALL, "one", freeze=["vision"]),
    Case("llava", LARGE, "one", mixed=True, tokens=700, image=(84, 84)),
    Case("qwen2_vl", SMALL, "ddp", 2),
    Case("llava", SMALL, "ddp", 2, mixed=True, accumulate=2, tokens=700),
    Case("qwen2_5_vl", SMALL, "fsdp2", 2),
    Case("qwen2_5_vl", LARGE, "fsdp2", 2, mixed=True, recompute=True),
    Case("qwen2_5_vl", SMALL, "fsdp2", 2, mixed=True, accumulate=2),
    Case("internvl", SMALL, "fsdp2", 2, mixed=True, recompute=True, accumulate=2, reduce_every=True),
    Case("llava", LARGE, "fsdp2", 2, recompute=True, tokens=700, image=(84, 84)),
    Case("internvl", LARGE, "hsdp", 4, mixed=True, recompute=True),
    Case("qwen2_vl", SMALL, "fsdp2", 4, mixed=True, recompute=True, accumulate=2, tensor=2),
    Case("qwen2_5_vl", SMALL, "fsdp2", 2, context=2, tokens=801, examples=1, image=(112, 84)),
    Case(
        "llava",
        SMALL,
        "fsdp2",
        4,
        mixed=True,
        recompute=True,
        accumulate=2,
        context=2,
        tokens=1001,
        examples=3,
        image=(84, 84),
    ),
)


# ---- planned ----------------------------------------------------------------------------------------------


def planned(case: Case) -> Memory:
    """What the plan's arithmetic says."""
    model = model_on_meta(model_config(case.backbone), case.backbone, POINTER)
    split_layers(model, case.tensor)
    units = unit_sizes(model)
    bfloat16 = torch.bfloat16 if case.mixed else None
    if case.sharded:
        compute = Compute(bfloat16 or torch.float32, None, gpu=False)
    else:
        compute = Compute(torch.float32, bfloat16, gpu=False)
    placement = Placement(
        whole=not case.sharded,
        buckets=case.strategy == "ddp",
        shards=case.shards,
        tensor=case.tensor,
        weight=4,
        gathered=2 if case.sharded and case.mixed else 4,
        reduced=4,
        moments=8,
        accumulate=case.accumulate,
        reduce_every=case.reduce_every,
    )
    return fullest(record(model, shape_of(case), compute), units, placement)


def shape_of(case: Case) -> BatchShape:
    """The micro-batch of a case."""
    return BatchShape(
        case.examples,
        case.tokens,
        ImageShape.of(case.backbone, case.image),
        case.tensor * case.context,
        case.context,
    )


# ---- measured ---------------------------------------------------------------------------------------------


class Measured(LiveBytes):
    """Counts storages that change their size as well, as those of gathered units do."""

    def __enter__(self) -> Measured:
        self._resize = torch.UntypedStorage.resize_
        torch.UntypedStorage.resize_ = self._resized()  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def _resized(self) -> Any:
        resize = self._resize

        def resized(storage: torch.UntypedStorage, size: int) -> None:
            before = self._sizes.get(storage._cdata)
            resize(storage, size)
            if before is not None:
                self._sizes[storage._cdata] = size
                self.live += size - before
                self.noted()

        return resized

    def _note(self, tensor: Tensor, is_copy: bool) -> None:
        super()._note(tensor.to_local() if isinstance(tensor, DTensor) else tensor, is_copy)


class Real:
    """Makes a micro-batch of real tensors."""

    def empty(self, shape: Any, dtype: torch.dtype) -> Tensor:
        """Zeros."""
        return torch.zeros(shape, dtype=dtype)


def measure(case: Case) -> int:
    """The most bytes that a rank holds in two steps, weights included."""
    torch.manual_seed(0)
    model = PointAndCopyModel.build(case.backbone, POINTER).train()
    batch = PaperBatch.of(model, replace(shape_of(case), sharing=1))
    wrapped: nn.Module = model
    if case.strategy == "ddp":
        wrapped = DistributedDataParallel(model)
    elif case.sharded:
        name, inner = (CONTEXT, case.context) if case.context > 1 else (TENSOR, case.tensor)
        shape = (case.ranks // case.shards, case.shards // inner, inner)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=(COPIES, SHARDS, name))
        shard_model(model, Meshes.of(mesh), torch.bfloat16 if case.mixed else None)
    live = Measured()
    own = [t.to_local() if isinstance(t, DTensor) else t for t in model.parameters()]
    live.exclude([*own, *model.buffers()])
    with live:
        train(case, wrapped, model, batch)
    return live.peak + sum(p.numel() * p.element_size() for p in own)


def train(case: Case, wrapped: nn.Module, model: Any, batch: PaperBatch) -> None:
    """Two steps in the order of Lightning."""
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-5, fused=True)
    autocast = case.mixed and not case.sharded
    for _ in range(STEPS):
        for index in range(case.accumulate):
            with without_sync(case, wrapped, index == case.accumulate - 1):
                inputs = batch.inputs(Real())  # type: ignore[arg-type]
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    loss = wrapped(**inputs).loss
                if index == 0:
                    optimizer.zero_grad()
                loss.backward()
                del loss, inputs
        clip_by_norm(learned, 1.0)
        optimizer.step()


@contextmanager
def without_sync(case: Case, wrapped: Any, last: bool) -> Iterator[None]:
    """Keep gradients on the rank until the last micro-batch, as the strategies do."""
    if case.strategy == "ddp" and not last:
        with wrapped.no_sync():
            yield
        return
    if case.sharded:
        wrapped.set_requires_gradient_sync(last or case.reduce_every)
    yield


def on_rank(rank: int, case: Case, folder: str) -> None:
    """One rank of a run; writes its peak."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = distributed.FileStore(f"{folder}/store", case.ranks)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=case.ranks)
    Path(folder, f"{rank}.json").write_text(json.dumps(measure(case)))
    distributed.destroy_process_group()


def measured(case: Case) -> int:
    """The highest peak of all ranks."""
    print(f"measuring {case.name}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        # Forked: everything is imported already.
        mp.start_processes(on_rank, (case, folder), nprocs=case.ranks, start_method="fork")
        return max(json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(case.ranks))


def main(argv: list[str] | None = None) -> int:
    """Print the table; returns 1 where a plan is more than 10 % off."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases with this in their names")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    # All of it first: a process whose autograd has run cannot be forked.
    peaks = {case.name: (case, measured(case)) for case in CASES if options.only in case.name}
    print(
        "| run | million parameters | measured, MiB | planned, MiB | off |\n| --- | --: | --: | --: | --: |"
    )
    for case, peak in peaks.values():
        model = model_on_meta(model_config(case.backbone), case.backbone, POINTER)
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        plan = planned(case)
        off = plan.total / peak - 1
        rows.append(
            {
                "run": case.name,
                "parameters": parameters,
                "measured": peak,
                "off": off,
                "planned": asdict(plan),
            }
        )
        print(
            f"| {case.name} | {parameters:.0f} | {peak / MIB:,.1f} | {plan.total / MIB:,.1f} | {off:+.1%} |",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return int(any(abs(row["off"]) > LIMIT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
