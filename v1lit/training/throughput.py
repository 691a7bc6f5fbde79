"""How fast a run is, and how close to what the device could do."""

from __future__ import annotations

import socket
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from v1lit.data.encode.batch import Batch
from v1lit.data.loading.ranks import Ranks, Waiting
from v1lit.training.flops import ModelFlops, WorkSum
from v1lit.training.logged import FLOPS, MFU, RATES
from v1lit.training.peak import Peak, find_peak, product_kind
from v1lit.training.slowest import DataWaits, ForwardClock, OwnTimes, Slowest
from v1lit.training.steps import total_steps

FETCH, SAVE = "train_dataloader_next", "save_checkpoint"
"""What Lightning calls waiting for the next batch, and writing a checkpoint."""
OTHERS = "others"
"""Of the wait for a batch, what was spent waiting for other ranks."""


class Stopwatch(Profiler):
    """Adds up the seconds that a Trainer spends waiting for batches and writing checkpoints.

    Lightning tells its profiler when it begins and ends anything. The one that was set before hears it too,
    but not of this one's end, which comes before it has reported.

    Args:
        inner: the profiler that was set before.
    """

    def __init__(self, inner: Profiler) -> None:
        super().__init__(dirpath=inner.dirpath, filename=inner.filename)
        self.inner = inner
        self.seconds = {FETCH: 0.0, SAVE: 0.0, OTHERS: 0.0}
        self.waiting = Waiting()
        """For other ranks; replaced once they can be waited for."""
        self._began: dict[str, float] = {}
        self._waited = 0.0

    def start(self, action_name: str) -> None:
        self.inner.start(action_name)
        self._began[action_name] = time.perf_counter()
        if action_name.endswith(FETCH):
            self._waited = self.waiting.seconds

    def stop(self, action_name: str) -> None:
        name = action_name.rpartition(".")[2]
        if name in self.seconds and action_name in self._began:
            self.seconds[name] += time.perf_counter() - self._began.pop(action_name)
            if name == FETCH:
                self.seconds[OTHERS] += self.waiting.seconds - self._waited
        self.inner.stop(action_name)

    def setup(self, *args: Any, **kwargs: Any) -> None:
        self.inner.setup(*args, **kwargs)

    def describe(self) -> None:
        self.inner.describe()

    def summary(self) -> str:
        return self.inner.summary()


class Throughput(Callback):
    """Logs rates over all ranks, the share of time that data was waited for, operations, and the MFU.

    Everything is of the interval between two logs: the time of its clock, less validation and checkpoints. No
    step waits for the GPU because of it; at the end of an interval, the ranks' sums are added up once.

    Args:
        peak_tflops: of one device, TFLOP/s; else published for it, else measured. See `find_peak`.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        self.peak_tflops = peak_tflops
        self.unseen = 0
        self.cut = 0
        self._peak: Peak | None = None
        self._flops: ModelFlops | None = None
        self._watch: Stopwatch | None = None

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._watch = Stopwatch(trainer.profiler)  # type: ignore[attr-defined]  # a connector sets it
            trainer.profiler = self._watch  # type: ignore[attr-defined]

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if self._watch is not None:
            trainer.profiler = self._watch.inner  # type: ignore[attr-defined]
            self._watch = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._prepare_mfu(trainer, module)
        steps = total_steps(trainer)
        if steps and steps < trainer.log_every_n_steps:  # type: ignore[attr-defined]  # a connector sets it
            # A run that is shorter than the interval between two logs is logged at its end.
            trainer.log_every_n_steps = steps  # type: ignore[attr-defined]
        self._logged = trainer.global_step
        ranks = Ranks.of(trainer)
        self._data_waits = DataWaits(ranks.gather_processes(socket.gethostname()))
        self._forward = ForwardClock(module.device)
        if self._watch is not None:
            self._watch.waiting = ranks.waiting
        self._begin(module)

    def _prepare_mfu(self, trainer: Trainer, module: LightningModule) -> None:
        """Find formula and peak, and say which; without one of them, say why there is no MFU."""
        model: Any = module.model
        self._flops = self._peak = None
        try:
            kind = product_kind(str(trainer.precision), model.dtype, module.device)
            self._flops = ModelFlops(model)
            self._peak = find_peak(module.device, kind, self.peak_tflops)
        except (ValueError, RuntimeError) as error:
            rank_zero_info(f"train/mfu is not logged: {error}")
        else:
            rank_zero_info(f"MFU is the share of {self._peak.flops / 1e12:.3g} TFLOP/s ({self._peak.source})")

    def _begin(self, module: Any) -> None:
        self._start, self._work = time.perf_counter(), WorkSum(module.model)
        self._away = 0.0  # seconds spent in validation
        self._waited, self._saved = self._clock(FETCH), self._clock(SAVE)
        self._for_others = self._clock(OTHERS)
        self._forward.read()

    def _clock(self, name: str) -> float:
        return 0.0 if self._watch is None else self._watch.seconds[name]

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        _finish_queue(module.device)
        self._left = time.perf_counter()
        self._saved_before = self._clock(SAVE)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            # A checkpoint written meanwhile counts once.
            self._away += time.perf_counter() - self._left - (self._clock(SAVE) - self._saved_before)

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._forward.begin()

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: torch.Tensor) -> None:
        self._forward.end()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._work.add(batch)
        self.unseen += batch.unseen
        self.cut += batch.cut
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # a connector sets it
        if trainer.global_step == self._logged or trainer.global_step % max(1, every):
            return
        values = self._values(trainer, module.device)
        module.log("examples/s", values[RATES[0]], prog_bar=True, logger=False, batch_size=len(batch))
        module.log_dict(values, batch_size=len(batch))
        self._logged = trainer.global_step
        self._begin(module)

    def _values(self, trainer: Trainer, device: torch.device) -> dict[str, float]:
        work = self._work
        flops = 0.0 if self._flops is None else self._flops.total(work.sum())
        _finish_queue(device)
        seconds = time.perf_counter() - self._start - self._away - (self._clock(SAVE) - self._saved)
        counts = (work.examples, work.tokens, work.real_tokens, work.images, work.positions)
        ranks, waited = Ranks.of(trainer), self._clock(FETCH) - self._waited
        # Processes that compute the same batches together count them once.
        shares = [number / ranks.alike for number in (*counts, flops)]
        own = OwnTimes(waited - (self._clock(OTHERS) - self._for_others), self._forward.read())
        table = ranks.table([*shares, seconds, waited, *own])
        examples, tokens, real, images, supervised, flops, seconds, waited, *_ = table.sum(0).tolist()
        seconds_each = seconds / trainer.world_size
        slowest = Slowest.of(table[:, -2:], seconds_each)
        if line := self._data_waits.line(table[:, -2], seconds_each):
            rank_zero_info(line)
        rates = (
            examples / seconds_each,
            tokens / seconds_each,
            real / seconds_each,
            images / seconds_each,
            seconds_each / (trainer.global_step - self._logged),
            waited / seconds,
            *map(float, slowest),
            1.0 - real / tokens,
            supervised / max(1, real),
            float(self.unseen),
            float(self.cut),
        )
        values = dict(zip(RATES, rates, strict=True))
        if self._flops is not None:
            values[FLOPS] = flops / (trainer.global_step - self._logged)
        if self._peak is not None:
            values[MFU] = flops / seconds / self._peak.flops
        return values


def _finish_queue(device: torch.device) -> None:
    """Wait for a GPU, so that its work is counted where it was asked for. Not for every step."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
