"""Host memory while weights are loaded: each of four processes its shards, beside one that loads all of them.

Usage: python tools/bench/loading.py [--quick] [--ranks N] [--dtype float32] [--json FILE]

A checkpoint of about 0.6 billion bfloat16 parameters in several files is made in a temporary folder. Every
process is a fresh one; it opens a tiny model first, so that imports and gloo's buffers are not counted. The
peak is the kernel's (VmHWM in /proc, set back before loading), which also counts pages of mapped files: what a
process would be charged for by a container's limit is less.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from rows import Row, print_rows, write_rows
from torch.distributed.fsdp import fully_shard

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.efficiency import part_layers
from v1lit.backbones.registry import get_backbone
from v1lit.backbones.tiny import tiny_tokenizer
from v1lit.parallel.fill import fill
from v1lit.parallel.tensors import local_part, model_tensors
from v1lit.pointer.model import PointAndCopyModel

FAMILY = "qwen2_5_vl"
MIB = 2**20
SLACK = 1.3
"""How much of its own share a process may take at most, beside one tensor."""


@dataclass(frozen=True)
class Size:
    """Of the model."""

    tiny: dict[str, int]
    vocabulary: int
    file: str
    """Largest file."""


FULL = Size({"hidden_size": 1280, "intermediate_size": 5120, "layers": 20, "heads": 20, "kv_heads": 4}, 65_536, "300MB")
QUICK = Size({"hidden_size": 64, "layers": 2}, 2_048, "1MB")


def make_checkpoint(folder: Path, size: Size) -> None:
    """Random weights in bfloat16, in the layout of transformers."""
    import transformers

    backbone = get_backbone(FAMILY)
    config = backbone.tiny_config(tiny_tokenizer(backbone.chat.stop), **size.tiny)
    config.get_text_config().vocab_size = size.vocabulary
    model = getattr(transformers, backbone.model_class)._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=size.file)


def memory() -> dict[str, int]:
    """Bytes of this process by the kernel's names."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        name: int(value.split()[0]) * 1024
        for name, value in (line.split(":") for line in lines)
        if name in ("VmRSS", "VmHWM", "RssAnon", "RssFile")
    }


def load_sharded(config: BackboneConfig) -> PointAndCopyModel:
    """Cut at layers, then filled."""
    model = PointAndCopyModel.build(config, empty=True)
    for part in ("vision", "language"):
        for layer in part_layers(model.backbone, model.family, part):
            fully_shard(layer)
    fully_shard(model)
    fill(model, config, "cpu")
    return model


def measure_one(how: str, folder: str, dtype: str) -> None:
    """In a process of its own: load, and print share, largest tensor, peak and what is left, in bytes."""
    dist.init_process_group("gloo")
    load = PointAndCopyModel.build if how == "whole" else load_sharded
    load(BackboneConfig(FAMILY, "tiny", dtype=dtype))  # type: ignore[arg-type]
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5")
    before = memory()["VmRSS"]
    model = load(BackboneConfig(FAMILY, folder, dtype=dtype))  # type: ignore[arg-type]
    after = memory()
    tensors = [one.tensor for one in model_tensors(model)]
    share = sum(torch.Size(local_part(t)[0]).numel() * t.element_size() for t in tensors)
    largest = max(t.numel() * t.element_size() for t in tensors)
    dist.barrier()
    print("MEASURED", share, largest, after["VmHWM"] - before, after["VmRSS"] - before, sum(t.numel() for t in tensors))
    dist.destroy_process_group()


def measure(how: str, folder: Path, dtype: str, ranks: int) -> list[list[int]]:
    """`measure_one` in so many processes at the same time."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, __file__, "--one", how, "--folder", str(folder), "--dtype", dtype]
        surroundings = os.environ | {
            "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29681", "OMP_NUM_THREADS": "1",
        }
        processes = [
            subprocess.Popen(
                command, env=surroundings | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True, cwd=place
            )
            for rank in range(ranks)
        ]
        outputs = [process.communicate()[0] for process in processes]
    found = [line.split()[1:] for text in outputs for line in text.splitlines() if line.startswith("MEASURED")]
    return [[int(word) for word in words] for words in found]
if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--one"); p.add_argument("--folder"); p.add_argument("--dtype", default="float32"); p.add_argument("--quick", action="store_true")
    a = p.parse_args()
    if a.one:
        measure_one(a.one, a.folder, a.dtype)
    else:
        with tempfile.TemporaryDirectory() as d:
            make_checkpoint(Path(d), QUICK if a.quick else FULL)
            print(sorted((f.name, f.stat().st_size>>20) for f in Path(d).iterdir()))
            for dt in ("float32","bfloat16"):
              for how, n in (("whole",1),("sharded",4)):
                for m in measure(how, Path(d), dt, n):
                    s,l,pk,left,num=m
                    print(dt, how, "share %d largest %d peak %d left %d MiB, limit %.0f, peak/share %.2f; %dM params" % (s>>20,l>>20,pk>>20,left>>20,(1.3*s+l)/2**20, pk/s, num/1e6))
