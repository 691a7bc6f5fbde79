"""The line on the screen while a run trains."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.text import Text

from v1lit.console import screen, text_column
from v1lit.parallel.tensors import whole_shape
from v1lit.training.steps import total_steps

MEASUREMENTS = {
    "loss": "loss {:.3f}",
    "pointing": "pointing {:.0%}",
    "examples/s": "{:.0f}/s",
    "val pointing": "val {:.0%}",
}
"""How the measurements logged with `prog_bar=True` are written, in this order; others come after, by name."""
SECONDS_BETWEEN_READS = 0.5
"""Reading a measurement waits for the GPU, so it is not done at every step."""
SECONDS_BETWEEN_LINES = 30.0
"""How often a line is printed where there is no terminal whose line could change, such as in a log file."""


class RunProgress(ProgressBar):
    """Optimizer steps of a whole `fit` on one line, and a second one while it validates.

    train ━━━━━━━╸━━━━━━━ 600/1200 02:10<02:09 loss 1.204 pointing 81% 148/s val 79%
    """

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.progress: Progress | None = None
        self._train = self._val = TaskID(0)
        self._read = -math.inf
        self._printed = -math.inf

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Say what is trained, and begin the line."""
        if not self.enabled:
            return
        self.progress = Progress(
            text_column("{task.description}"),
            BarColumn(bar_width=None),
            text_column("{task.fields[count]}", justify="right"),
            _Times(),
            text_column("{task.fields[numbers]}"),
            console=screen(),
            expand=True,
            refresh_per_second=4,
            speed_estimate_period=600,
        )
        self.progress.console.print(what_is_trained(trainer, module))
        self._train = self._add("train", total_steps(trainer), trainer.global_step)
        self.progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._show(self._train, trainer.global_step)
        if time.monotonic() - self._read >= SECONDS_BETWEEN_READS:
            self._read_numbers(trainer)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.progress is not None:
            self._val = self._add("valid", sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._show(self._val, batch_idx + 1)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.progress is not None:
            self.progress.remove_task(self._val)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._read_numbers(trainer)
        self._stop()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _add(self, name: str, total: float | None, done: int = 0) -> TaskID:
        assert self.progress is not None
        finite = None if total == math.inf else total
        task = self.progress.add_task(name, total=finite, completed=done, count="", numbers="")
        self._show(task, done)
        return task

    def _show(self, task: TaskID, done: int) -> None:
        if self.progress is None:
            return
        total = next(shown.total for shown in self.progress.tasks if shown.id == task)
        count = f"{done}" if total is None else f"{done}/{int(total)}"
        self.progress.update(task, completed=done, count=count)

    def _read_numbers(self, trainer: Trainer) -> None:
        if self.progress is None:
            return
        self._read = time.monotonic()
        numbers = in_short(trainer.progress_bar_metrics)
        self.progress.update(self._train, numbers=numbers)
        console = self.progress.console
        if not console.is_terminal and self._read - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = self._read
            console.print(f"step {trainer.global_step} {numbers}")

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


class _Times(ProgressColumn):
    """Time since the start and, as far as it is known, until the end."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        elapsed = task.finished_time if task.finished else task.elapsed
        times = [elapsed or 0.0] if task.time_remaining is None else [elapsed or 0.0, task.time_remaining]
        return Text("<".join(str(timedelta(seconds=int(seconds))).removeprefix("0:") for seconds in times))


def in_short(metrics: dict[str, Any]) -> str:
    """Measurements as they stand at the end of the line."""
    ordered = (name for name in {**MEASUREMENTS, **metrics} if name in metrics)
    return " ".join(MEASUREMENTS.get(name, name + " {:.3g}").format(float(metrics[name])) for name in ordered)


def what_is_trained(trainer: Trainer, module: LightningModule) -> str:
    """How many parameters learn, of how many, and where."""
    parameters = list(module.parameters())
    total = sum(math.prod(whole_shape(p)) for p in parameters)
    trained = sum(math.prod(whole_shape(p)) for p in parameters if p.requires_grad)
    devices = f"{trainer.world_size} x {trainer.strategy.root_device.type}"
    which = f"all {_rounded(total)}" if trained == total else f"{_rounded(trained)} of {_rounded(total)}"
    return f"training {which} parameters on {devices}"


def _rounded(number: int) -> str:
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:,}"
