"""Options of training: the optimizer, the folder of a run, and what is done when training has ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import ClassVar, Literal

from v1lit.errors import OptionError, check_choices, check_fields, check_least
from v1lit.paths import expand_fields


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer with a warm-up and a schedule; the defaults are the published v1 settings.

    Source: jun297/v1, train.py, `training_args`, which names no `betas`.
    """

    name: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """`adamw8bit` keeps the two moments of large tensors in 8 bits (arXiv 2110.02861; the extra `adamw8bit`).
    `muon` orthogonalises the updates of hidden matrices, scaled as in arXiv 2502.16982 so that AdamW's
    learning rates fit, and leaves everything else to AdamW."""
    lr: float = 3e-5
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the two moments."""
    eps: float = 1e-8
    """AdamW's addend below the fraction."""
    weight_decay: float = 0.0
    """Applied to matrices only, never to biases, norms and other vectors."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape after the warm-up, down to `final` times the peak at the last step."""
    warmup: float = 0.03
    """Share of all steps spent rising linearly from zero to the peak."""
    final: float = 0.0
    """Learning rate at the last step, as a share of the peak."""

    GROUP: ClassVar[str] = "optimizer"

    def __post_init__(self) -> None:
        check_choices(self)
        check_fields(self, ["lr"], lambda rate: rate > 0, "it must be positive")
        check_fields(self, ["warmup"], _is_share, "it is a share of all steps, from 0 to 1")
        check_fields(self, ["final"], _is_share, "it is a share of the peak, from 0 to 1")


def _is_share(number: float) -> bool:
    return 0 <= number <= 1


@dataclass(frozen=True)
class RunConfig:
    """Where a run writes and what it reports at its end."""

    folder: str = "runs"
    """Every run makes a folder of its own in here."""
    name: str | None = None
    """Name of the run's folder; recipe name and time when not given."""
    resume: str | None = None
    """Checkpoint file to resume from; `last`: the newest of the run's folder; `auto`: that, or begin."""
    checkpoint_every: int | None = None
    """Optimizer steps between two `last.ckpt`; when not given, every ten minutes, rarer if saving is slow."""
    report_examples: int = 256
    """Held-out examples to generate for in the report; 0 leaves the report out."""
    report_batch_size: int = 32
    """Examples that generate together in the report."""
    report_max_new_tokens: int = 96
    """Longest trace to generate in the report, tokens."""
    answers_at_validation: int = 0
    """Held-out examples to generate for at every validation too: logs `val/answer_accuracy`; 0: none."""
    pictures: int = 8
    """PNG files of generated traces to draw."""
    peak_tflops: float | None = None
    """What one device can do at most, TFLOP/s, for the MFU; by default as published, else measured."""
    wait_for_ranks: float = 300.0
    """Seconds that ranks wait for each other when they begin; then the run ends, with who is missing."""
    behind_after: float = 120.0
    """Seconds without a sign of progress after which a rank that the others wait for is named."""
    lost_after: float = 300.0
    """Seconds without a sign of life from a rank after which the others end, with its name."""
    export: bool = True
    """Write the best model as a folder that `PointAndCopyModel.from_pretrained` opens."""

    GROUP: ClassVar[str] = "run"
    PATHS: ClassVar[tuple[str, ...]] = ("folder", "resume")

    def __post_init__(self) -> None:
        expand_fields(self)
        if self.name is not None and (problem := _problem_of_name(self.name)):
            raise OptionError("name", self.name, problem, self.GROUP)
        check_least(self, 1, "checkpoint_every", "report_batch_size", "report_max_new_tokens")
        check_least(self, 0, "report_examples", "answers_at_validation", "pictures")
        if self.resume in ("last", "auto") and self.name is None:
            why = "it looks in the run's folder: give run.name"
            raise OptionError("resume", self.resume, why, self.GROUP)
        check_fields(self, ["peak_tflops"], lambda peak: peak > 0, "it must be positive, or null")
        check_fields(
            self,
            ["wait_for_ranks", "behind_after", "lost_after"],
            lambda seconds: seconds > 0,
            "give seconds, above 0",
        )


def _problem_of_name(name: str) -> str | None:
    """Why a run's folder cannot have this name below `run.folder`."""
    path = PurePath(name)
    if not name.strip():
        return "give a name, or leave it out for recipe name and time"
    if path.is_absolute() or ".." in path.parts or not path.parts:
        return "a name lies inside of run.folder; give another folder with run.folder"
    if not name.isprintable():
        return "line breaks and other control characters cannot be used in it"
    if "::" in name or "://" in name:  # fsspec, which writes checkpoints, reads them as URLs.
        return "'::' and '://' cannot be used in it"
    return None
