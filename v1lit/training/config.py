"""Options of training: the optimizer, the folder of a run, and what is done when training has ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import ClassVar, Literal, get_args

from v1lit.backbones.config import Part
from v1lit.errors import OptionError, check_choices, check_fields, check_least, name_allowed
from v1lit.paths import expand_fields

PARTS: tuple[str, ...] = get_args(Part)
"""Of a model, which may have options of the optimizer of their own."""


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
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    """By part (`vision`, `projector`, `language`, `pointer`) a peak `lr` or a `weight_decay` of its own, such
    as `{vision: {lr: 2e-6, weight_decay: 0.0}}`; the schedule is that of all."""
    layer_decay: float = 1.0
    """A layer's rate as a share of that of the layer above it; `language` and `vision` each count from their
    highest layer that learns, and what lies below the layers, the embeddings, counts as one more. As in
    arXiv 2003.10555, section A, but that the highest layer has the whole rate."""
    ema_decay: float | None = None
    """Share of an exponential moving average of the weights that stays in a step, such as 0.999. The average
    is what is validated, chosen, exported and reported on; None for the weights themselves."""

    GROUP: ClassVar[str] = "optimizer"

    def __post_init__(self) -> None:
        check_choices(self)
        check_fields(self, ["lr"], lambda rate: rate > 0, "it must be positive")
        check_fields(self, ["warmup"], _is_share, "it is a share of all steps, from 0 to 1")
        check_fields(self, ["final"], _is_share, "it is a share of the peak, from 0 to 1")
        why = "it is a share of the rate of the layer above, above 0 and up to 1"
        check_fields(self, ["layer_decay"], lambda share: 0 < share <= 1, why)
        check_fields(
            self, ["ema_decay"], lambda share: 0 < share < 1, "it lies between 0 and 1, such as 0.999"
        )
        for part, own in self.parts.items():
            _check_part(part, own)


def _is_share(number: float) -> bool:
    return 0 <= number <= 1


def _check_part(part: str, own: dict[str, float]) -> None:
    """Raise OptionError for a part that there is not, or options that it cannot have."""
    group = f"model.{OptimizerConfig.GROUP}"
    if part not in PARTS:
        raise OptionError(f"parts.{part}", own, name_allowed(part, PARTS), group)
    if not own or set(own) - {"lr", "weight_decay"}:
        raise OptionError(f"parts.{part}", own, "give its lr, its weight_decay, or both", group)
    if own.get("lr", 1.0) <= 0:
        raise OptionError(f"parts.{part}.lr", own["lr"], "it must be positive", group)
    if own.get("weight_decay", 0.0) < 0:
        raise OptionError(f"parts.{part}.weight_decay", own["weight_decay"], "give 0 or more", group)


@dataclass(frozen=True)
class RunConfig:
    """Where a run writes and what it reports at its end."""

    folder: str = "runs"
    """Every run makes a folder of its own in here."""
    name: str | None = None
    """Name of the run's folder; recipe name and time when not given."""
    resume: str | None = None
    """Checkpoint file to resume from; `last`: the newest of the run's folder; `auto`: that, or begin."""
    stage: str | None = None
    """The stage to train by itself, of a recipe with `stages`; without it all of them, one after another."""
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
