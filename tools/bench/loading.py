"""Host memory while weights are loaded: each of four processes its part, beside one that loads all of them.

Usage: python tools/bench/loading.py [--quick] [--ranks N] [--dtype TYPE] [--json FILE]

A checkpoint of 643 million bfloat16 parameters in five files is made in a temporary folder. Every process is
fresh, and opens a tiny model first, so that imports and buffers of gloo are not counted. The peak is the
kernel's VmHWM, set back before loading: private memory and the pages of mapped files together.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rows import Row, print_rows, write_rows
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from v1lit.backbones.classes import named_class
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.registry import get_backbone
from v1lit.backbones.tiny import tiny_tokenizer
from v1lit.parallel.fill import fill
from v1lit.parallel.sharding import Meshes, shard_model
from v1lit.pointer.model import PointAndCopyModel

FAMILY = "qwen2_5_vl"
MIB = 2**20
SLACK = 1.3
"""How much of its own share a process may take at most, beside one tensor."""
RESULT = "loaded:"


@dataclass(frozen=True)
class Size:
    """Of the checkpoint."""

    tiny: Mapping[str, int]
    vocabulary: int
    file: str
    """Size of the largest file."""


FULL = Size(
    {"hidden_size": 1280, "intermediate_size": 5120, "layers": 20, "heads": 20, "kv_heads": 4},
    vocabulary=65_536,
    file="300MB",
)
QUICK = Size({"hidden_size": 512, "intermediate_size": 2048, "layers": 12}, vocabulary=8_192, file="30MB")


@dataclass(frozen=True)
class Loaded:
    """What one process had, in bytes."""

    share: int
    """Its own part of all parameters and buffers."""
    largest: int
    """The largest tensor of the model, whole."""
    peak: int
    """Resident memory above that before, at most."""
    left: int
    """And at the end."""

    @property
    def allowed(self) -> float:
        return SLACK * self.share + self.largest


def make_checkpoint(folder: Path, size: Size) -> None:
    """Random weights in bfloat16, in the layout of transformers."""
    backbone = get_backbone(FAMILY)
    config = backbone.tiny_config(tiny_tokenizer(backbone.chat.stop, backbone.chat.single), **size.tiny)
    config.get_text_config().vocab_size = size.vocabulary
    model = named_class(backbone.model_class)._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=size.file)


def resident(name: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def load_part(config: BackboneConfig) -> PointAndCopyModel:
    """As a sharded strategy does it."""
    model = PointAndCopyModel.build(config, empty=True)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    shard_model(model, Meshes(mesh, mesh))
    fill(model, config, "cpu")
    return model


def load_one(sharded: bool, folder: str, dtype: Any) -> None:
    """In a process of its own: load, and print what it took."""
    dist.init_process_group("gloo")
    load = load_part if sharded else PointAndCopyModel.build
    load(BackboneConfig(FAMILY, "tiny", dtype=dtype))
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back
    before = resident("VmRSS")
    model = load(BackboneConfig(FAMILY, folder, dtype=dtype))
    peak, left = resident("VmHWM") - before, resident("VmRSS") - before
    tensors = [*model.parameters(), *model.buffers()]
    parts = [one.to_local() if isinstance(one, DTensor) else one for one in tensors]
    share, largest = sum(part.nbytes for part in parts), max(one.nbytes for one in tensors)
    dist.barrier()
    print(RESULT, share, largest, peak, left, flush=True)
    dist.destroy_process_group()


def load_all(folder: Path, dtype: str, ranks: int, sharded: bool) -> list[Loaded]:
    """`load_one` in so many processes at the same time."""
    command = [sys.executable, __file__, "--folder", str(folder), "--dtype", dtype]
    command += ["--sharded"] if sharded else []
    with tempfile.TemporaryDirectory() as place:
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks)}
        surroundings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        processes = [
            subprocess.Popen(
                command, env={**surroundings, "RANK": str(rank)}, cwd=place, stdout=subprocess.PIPE, text=True
            )
            for rank in range(ranks)
        ]
        texts = [process.communicate()[0] for process in processes]
    if failed := [rank for rank, process in enumerate(processes) if process.returncode]:
        raise SystemExit(f"loading failed on ranks {failed}")
    lines = [line for text in texts for line in text.splitlines() if line.startswith(RESULT)]
    return [Loaded(*map(int, line.split()[1:])) for line in lines]


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def measure(size: Size, ranks: int, dtype: str, words: str) -> list[Row]:
    """One process that loads all, then all of them their parts."""
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder), size)
        (whole,) = load_all(Path(folder), dtype, ranks=1, sharded=False)
        parts = load_all(Path(folder), dtype, ranks, sharded=True)
    worst = max(parts, key=lambda part: part.peak / part.allowed)
    title, command = f"Loading in {dtype}", f"python tools/bench/loading.py{words}"
    met = worst.peak <= worst.allowed
    goal = f"<= {worst.allowed / MIB:.0f}, {SLACK} x its share and one tensor"
    note = f"share {worst.share / MIB:.0f} MiB, largest tensor {worst.largest / MIB:.0f} MiB"
    return [
        Row(f"{title}, whole: peak of the process", whole.peak / MIB, "MiB", command),
        Row(f"{title}, whole: left in the end", whole.left / MIB, "MiB", command),
        Row(
            f"{title}, {ranks} ranks: peak of a process",
            worst.peak / MIB, "MiB", command, goal=goal, met=met, note=note,
        ),
        Row(f"{title}, {ranks} ranks: peak / share", worst.peak / worst.share, "x", command),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--dtype", default="float32", help="of the loaded weights")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--sharded", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.folder is not None:
        load_one(options.sharded, options.folder, options.dtype)
        return
    words = f" --ranks {options.ranks} --dtype {options.dtype}"
    rows = measure(QUICK if options.quick else FULL, options.ranks, options.dtype, words)
    print_rows(rows)
    if options.json is not None:
        write_rows(options.json, rows)


if __name__ == "__main__":
    main()
