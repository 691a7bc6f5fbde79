"""One epoch of packed batches through the data module, with worker processes: speed, state and memory."""

from __future__ import annotations

import io
import multiprocessing
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from v1lit.backbones.config import BackboneConfig
from v1lit.data.config import EncodingConfig, PackingConfig, SourceConfig
from v1lit.data.datamodule import V1DataModule

LENGTH = 2048
"""Tokens of a row: a few examples with their images."""
SAMPLES = 60
"""How often memory is looked at in an epoch."""
MIB = 2**20


class Memory(NamedTuple):
    """Of one process, bytes."""

    own: int
    """Held by this process alone (USS)."""
    share: int
    """That and its share of what several hold (PSS)."""


class Look(NamedTuple):
    """The workers' memory at one moment."""

    progress: float
    """Share of the epoch that was read, 0 to 1."""
    workers: list[Memory]


@dataclass
class Epoch:
    """What one epoch took."""

    examples: int = 0
    batches: int = 0
    seconds: float = 0.0
    """From asking for the first batch to the end, starting the workers included."""
    prepare_seconds: float = 0.0
    """Before the epoch, once per data: lengths are measured."""
    state_seconds: list[float] = field(default_factory=list)
    """Noting each batch, and what the state behind it adds to a checkpoint."""
    other_seconds: float = 0.0
    """Of measuring itself, which are no part of a step."""
    state_bytes: int = 0
    """Of the largest state, as a checkpoint holds it."""
    memory: list[Look] = field(default_factory=list)

    @property
    def step_seconds(self) -> float:
        """Of one batch: a step that waits for nothing but its data."""
        return (self.seconds - sum(self.state_seconds) - self.other_seconds) / self.batches

    @property
    def state_share(self) -> float:
        """Percent of the time of a step, where every step saves the state."""
        return 100 * median(self.state_seconds) / self.step_seconds


def data_module(folder: Path, workers: int) -> V1DataModule:
    """Rows filled by a tiny Qwen2.5-VL's processor."""
    return V1DataModule(
        BackboneConfig("qwen2_5_vl", tiny={}),
        SourceConfig(folder=str(folder)),
        EncodingConfig(max_tokens=LENGTH),
        num_workers=workers,
        packing=PackingConfig(length=LENGTH),
    )


def run_epoch(data: V1DataModule, examples: int, states: bool = False, memory: bool = False) -> Epoch:
    """Read an epoch of at most `examples` examples; after every batch save the state, now and then look at
    the workers' memory.
    """
    start = time.perf_counter()
    data.prepare_data()
    epoch = Epoch(prepare_seconds=time.perf_counter() - start)
    data.setup("fit")
    loader = data.train_dataloader()
    start = time.perf_counter()
    for batch in loader:
        epoch.examples += len(batch.ids)
        epoch.batches += 1
        if states:
            _save_state(data, batch, epoch)
        if memory and epoch.examples * SAMPLES >= examples * len(epoch.memory):
            epoch.memory.append(Look(epoch.examples / examples, memory_of_children()))
    epoch.seconds = time.perf_counter() - start
    return epoch


def _save_state(data: V1DataModule, batch: Any, epoch: Epoch) -> None:
    """What training does with the state behind a batch, and how much longer it makes writing a checkpoint."""
    start = time.perf_counter()
    data.consumed(batch)
    state = data.state_dict()
    made = time.perf_counter() - start
    with_state, written = _written(state)
    without, _ = _written({})
    epoch.state_seconds.append(made + with_state - without)
    epoch.other_seconds += 2 * without
    epoch.state_bytes = max(epoch.state_bytes, written)


def _written(checkpoint: dict[str, Any]) -> tuple[float, int]:
    """Seconds and bytes of writing a checkpoint into memory."""
    file, start = io.BytesIO(), time.perf_counter()
    torch.save(checkpoint, file)
    return time.perf_counter() - start, file.tell()


def memory_of_children() -> list[Memory]:
    """Of the processes that this one started, by their numbers; [] where the system does not tell."""
    found = []
    for process in sorted(multiprocessing.active_children(), key=lambda one: one.pid or 0):
        try:
            found.append(read_memory(Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")))
        except OSError:  # it has ended, or this is no Linux
            continue
    return found


def read_memory(rollup: str) -> Memory:
    """From the text of `smaps_rollup`."""
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", rollup, re.MULTILINE)}
    return Memory(1024 * (kib["Private_Clean"] + kib["Private_Dirty"]), 1024 * kib["Pss"])


def own_between(memory: list[Look], begin: float, end: float) -> float | None:
    """Bytes of the largest worker in a part of the epoch: the median over the looks at it, then the most.

    A single look says little: the batch under way is a tenth of the whole.
    """
    parts = [look.workers for look in memory if begin <= look.progress <= end and look.workers]
    if not parts:
        return None
    workers = min(map(len, parts))
    return max(median(part[number].own for part in parts) for number in range(workers))
