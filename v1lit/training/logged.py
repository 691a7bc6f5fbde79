"""The names of everything that v1lit logs, and which of them a run can have."""

from __future__ import annotations

from collections.abc import Iterable

from v1lit.pointer.config import PointerConfig

TRAIN, VAL, VAL_POINTING = "train/", "val/", "val/forced_"
"""What comes before the names below; `forced`: along the true trace."""
LOSS = "loss"
LOSS_PARTS = ("joint", "text", "pointer", "z", "regions")
POINTING = (
    "pointer_accuracy",
    "pointer_first_accuracy",
    "pointer_first_in_region",
    "region_iou",
    "text_accuracy",
)
END_ACCURACY = "end_accuracy"
GRADIENT_NORM, LEARNING_RATE = "train/gradient_norm", "train/learning_rate"
LOSS_ERROR, SKIPPED = "train/loss_error", "train/skipped_batches"
RATES = (
    "train/examples_per_second",
    "train/tokens_per_second",
    "train/real_tokens_per_second",
    "train/images_per_second",
    "train/seconds_per_step",
    "train/data_wait_share",
    "train/slowest_rank",
    "train/slowest_rank_lag",
    "train/slowest_rank_data_wait",
    "train/padding_share",
    "train/supervised_share",
    "train/unseen_regions",
    "train/cut_tokens",
)
MFU, FLOPS = "train/mfu", "train/flops_per_step"
ON_THE_LINE, ON_THE_LINE_VAL = ("loss", "pointing", "examples/s"), ("val pointing",)
"""Shown beside the progress, and written nowhere."""


def loss_part(split: str, part: str) -> str:
    """The name of a part of the loss."""
    return f"{split}{LOSS}_{part}"


def pointing(ends: bool) -> list[str]:
    """Names of how well a model points; with `ends`, one whose runs end by a choice of the pointer head."""
    return [*POINTING, *([END_ACCURACY] if ends else [])]


def now_and_then(name: str) -> bool:
    """Whether it is logged every `trainer.log_every_n_steps` steps, not with every batch."""
    steps = [GRADIENT_NORM, LEARNING_RATE, *(TRAIN + name for name in pointing(ends=True))]
    of_source = name.startswith(TRAIN) and name.count("/") > 1
    return of_source or name in [*steps, *RATES, MFU, FLOPS, *ON_THE_LINE[1:]]


def of_sources(names: Iterable[str], sources: Iterable[str]) -> list[str]:
    """The names of measures, and those of the same measures of every source, `NAME/SOURCE`."""
    names = list(names)
    return [*names, *(f"{name}/{source}" for source in sources for name in names)]


def names_in_training(
    pointer: PointerConfig,
    verified: bool = False,
    skips: bool = False,
    regions: bool = False,
    ends: bool = False,
    parts: Iterable[str] = (),
    sources: Iterable[str] = (),
) -> list[str]:
    """What such a pointer logs while it trains.

    Args:
        pointer: of the model.
        verified: as `verify_loss` of `V1Module`.
        skips: whether batches may be skipped.
        regions: whether the revisit strategy has a loss of regions.
        ends: whether its runs end by a choice of the pointer head.
        parts: with learning rates of their own.
        sources: of the data, if several.
    """
    extra = [name for name, there in ((LOSS_ERROR, verified), (SKIPPED, skips)) if there]
    losses = [TRAIN + LOSS, *(loss_part(TRAIN, part) for part in _parts(pointer, regions))]
    rates = [GRADIENT_NORM, LEARNING_RATE, *(f"{LEARNING_RATE}_{part}" for part in parts)]
    measures = of_sources([*losses, *(TRAIN + name for name in pointing(ends))], sources)
    return [*measures, *rates, *RATES, MFU, FLOPS, *extra, *ON_THE_LINE]


def names_in_validation(
    pointer: PointerConfig, regions: bool = False, ends: bool = False, sources: Iterable[str] = ()
) -> list[str]:
    """What such a pointer logs after every validation; arguments as in `names_in_training`."""
    losses = [VAL + LOSS, *(loss_part(VAL, part) for part in _parts(pointer, regions))]
    measures = of_sources([*losses, *(VAL_POINTING + name for name in pointing(ends))], sources)
    return [*measures, *ON_THE_LINE_VAL]


def _parts(pointer: PointerConfig, regions: bool) -> list[str]:
    parts = ["joint"] if pointer.loss == "joint" else ["text", "pointer"]
    return [*parts, *(["z"] if pointer.z_weight else []), *(["regions"] if regions else [])]
