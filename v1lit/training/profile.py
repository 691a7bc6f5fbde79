"""A few training steps under the microscope: a trace, the costliest operations, the memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.profiler import ProfilerActivity

from v1lit.files import aside

ALLOCATIONS = 200_000
"""Events that the memory snapshot holds at most; the oldest are dropped first."""


class Profile(Callback):
    """Records a few batches of training on the first rank, and writes what they cost to `profile/`.

    In the folder `profile` of the Trainer's `default_root_dir`, which in a recipe is the run's folder:
    `trace.json.gz` (for ui.perfetto.dev), `operations.txt` (the costliest by time) and the memory: on a GPU
    `memory.pickle`, which the viewer on pytorch.org/memory_viz takes, else `memory.txt`, the operations that
    allocate most.

    Args:
        skip: batches before anything is recorded; the last of them warms the profiler up.
        batches: batches to record. A trace takes a few MB for each.
        rows: longest table of operations.
    """

    def __init__(self, skip: int = 5, batches: int = 3, rows: int = 40) -> None:
        for name, value, least in (("skip", skip, 1), ("batches", batches, 1), ("rows", rows, 1)):
            if value < least:
                raise ValueError(f"Profile: {name} is {value}; it must be at least {least}")
        self.skip, self.batches, self.rows = skip, batches, rows
        self._profiler: torch.profiler.profile | None = None
        self._seen = 0
        self._done = False

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._done or not trainer.is_global_zero:
            return
        if self._seen == self.skip - 1:
            self._start(module.device)
        if self._seen == self.skip and module.device.type == "cuda":
            torch.cuda.memory._record_memory_history(max_entries=ALLOCATIONS)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._seen += 1
        if self._profiler is not None:
            self._profiler.step()
            if self._seen == self.skip + self.batches:
                self._finish(trainer, module.device)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not self._done and trainer.is_global_zero:
            wanted = self.skip + self.batches
            rank_zero_warn(f"no profile: it takes {wanted} batches, and training ended after {self._seen}")
            self._stop(module.device)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._stop(module.device)

    def _start(self, device: torch.device) -> None:
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=0, warmup=1, active=self.batches, repeat=1),
            profile_memory=True,
            record_shapes=True,
        )
        self._profiler.start()

    def _finish(self, trainer: Trainer, device: torch.device) -> None:
        profiler = self._profiler
        assert profiler is not None
        folder = Path(trainer.default_root_dir) / "profile"
        with aside(folder) as unfinished:
            unfinished.mkdir()
            if device.type == "cuda":
                torch.cuda.memory._dump_snapshot(str(unfinished / "memory.pickle"))
            self._stop(device)
            profiler.export_chrome_trace(str(unfinished / "trace.json.gz"))
            events = profiler.key_averages(group_by_input_shape=True)
            own = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
            self._write_table(unfinished / "operations.txt", events, own)
            if device.type != "cuda":
                self._write_table(unfinished / "memory.txt", events, "self_cpu_memory_usage")
            shutil.rmtree(folder, ignore_errors=True)
        rank_zero_info(f"profile of batches {self.skip + 1} to {self._seen}: {folder}")

    def _write_table(self, path: Path, events: Any, sort_by: str) -> None:
        path.write_text(events.table(sort_by=sort_by, row_limit=self.rows), encoding="utf-8")

    def _stop(self, device: torch.device) -> None:
        self._done = True
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
            if device.type == "cuda":
                torch.cuda.memory._record_memory_history(enabled=None)
