"""Options of a run: its folder and what is done when training has ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunConfig:
    """Where a run writes and what it reports at its end."""

    folder: str = "runs"
    """Every run makes a folder of its own in here."""
    name: str | None = None
    """Name of the run's folder; recipe name and time when not given."""
    resume: str | None = None
    """Checkpoint file to go on from; `last`: the newest of the run's folder; `auto`: that, or begin."""
    checkpoint_every: int | None = None
    """Optimizer steps between two `last.ckpt`; when not given, every ten minutes, rarer if saving is slow."""
    report_examples: int = 256
    """Held-out examples to generate for in the report; 0 leaves the report out."""
    report_batch_size: int = 32
    report_max_new_tokens: int = 96
    """Longest trace to generate in the report, tokens."""
    pictures: int = 8
    """PNG files of generated traces to draw."""
    peak_tflops: float | None = None
    """What one device can do at most, TFLOP/s, for the MFU; else published for the device, else measured."""
    export: bool = True
    """Write the best model as a folder that `PointAndCopyModel.from_pretrained` opens."""

    def __post_init__(self) -> None:
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise ValueError(
                f"run.checkpoint_every is {self.checkpoint_every}; give 1 or more optimizer steps, or null"
            )
        if self.resume in ("last", "auto") and self.name is None:
            raise ValueError(f"run.resume is {self.resume!r}, which looks in the run's folder; give run.name")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise ValueError(f"run.peak_tflops is {self.peak_tflops}; it must be positive, or null")
