"""What a resumed run may change of its recipe, key by key, and what then happens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from v1lit.data.datamodule import V1DataModule
from v1lit.training.lightning_internals import (
    callback_states,
    data_state,
    epochs_of,
    steps_of,
)
from v1lit.training.saved_state import read_checkpoint

RECIPE = "v1lit"
"""Our key of a checkpoint: `model` and `data`, options as plain data, and `around`, what else is compared."""
VALIDATED = "v1lit_validated"
"""Another: what the last validation before it has measured, by the names of logs."""
VALIDATION = "the validation shards"
WEIGHTS, BEGIN_FROM = "model.backbone.weights", "model.begin_from"
CONTENT = {WEIGHTS: f"content of {WEIGHTS}", BEGIN_FROM: f"content of {BEGIN_FROM}"}
"""Of keys that name a folder of weights, what its content is recorded as."""
ADAPTER = "model.adapter"
SAMPLE = 65536
"""Bytes of a file of weights, at either end, that tell it from another."""


class Change(Enum):
    """What happens when a key has another value than in the run that wrote the checkpoint."""

    MODEL = "refused: the weights are those of another model"
    START = "refused: it acts once, where a run begins"
    ORDER = "refused in the middle of an epoch, which cannot continue in another order"
    CONTENT = "the content of the shards counts: as ORDER for training, as MEASURE for validation"
    MEASURE = "applied; `val/loss` measures something else now, so the best checkpoint is chosen anew"
    STATE = "applied; refused from without to with it and back, where the optimizer has another state"
    LIMIT = "applied; refused where the checkpoint lies behind it"
    APPLIED = "applied from the next step on"
    JOB = "of each job: nothing of it is in a checkpoint"


def _keys(group: str, names: str, change: Change) -> dict[str, Change]:
    return {f"{group}.{name}" if group else name: change for name in names.split()}


CHANGES: dict[str, Change] = {
    **_keys("model.backbone", "name tiny", Change.MODEL),
    **_keys("model.pointer", "tie_heads width key_source normalize gate", Change.MODEL),
    **_keys("model.revisit", "name options", Change.MODEL),
    **_keys(ADAPTER, "kind rank alpha rslora parts modules train", Change.MODEL),
    **_keys("model.revisit", "control control_when", Change.MEASURE),
    **_keys("model", "backbone.weights begin_from backbone.freeze freeze", Change.START),
    **_keys("model", "pointer.identity_init init_seed", Change.START),
    **_keys("model", "optimizer.name", Change.START),
    **_keys("data", "seed stream.shuffle_window stream.lanes", Change.ORDER),
    **_keys("data.source", "name folder mixture val path options", Change.CONTENT),
    **_keys("model.backbone", "image views", Change.MEASURE),
    **_keys("model.pointer", "loss z_weight z_top_k label_smoothing first_pointer_weight", Change.MEASURE),
    **_keys("data", "max_val_examples map map_validation", Change.MEASURE),
    **_keys("data.encoding", "max_tokens supervise coordinates", Change.MEASURE),
    **_keys("trainer", "limit_val_batches", Change.MEASURE),
    **_keys("trainer", "max_steps max_epochs", Change.LIMIT),
    **_keys("model.backbone", "dtype attention gradient_checkpointing compile", Change.APPLIED),
    **_keys("model.pointer", "loss_implementation loss_chunk", Change.APPLIED),
    **_keys("model.optimizer", "lr betas eps weight_decay schedule warmup final", Change.APPLIED),
    **_keys("model.optimizer", "parts layer_decay ema_decay", Change.STATE),
    **_keys(ADAPTER, "dropout", Change.APPLIED),
    **_keys("model", "on_nonfinite max_nonfinite verify_loss", Change.APPLIED),
    **_keys("data", "batch_size val_batch_size num_workers group_by_length", Change.APPLIED),
    **_keys("data.packing", "length look_ahead max_images max_image_tokens", Change.APPLIED),
    **_keys("data.stream", "tail on_bad max_bad_fraction max_bad_in_a_row max_seconds", Change.APPLIED),
    **_keys("data.stream", "cache cache_gb attempts timeout", Change.APPLIED),
    **_keys("", "seed_everything", Change.JOB),
    **_keys("run", "folder name resume stage checkpoint_every report_examples report_batch_size", Change.JOB),
    **_keys("run", "report_max_new_tokens answers_at_validation pictures peak_tflops export", Change.JOB),
    **_keys("run", "wait_for_ranks behind_after lost_after", Change.JOB),
    **_keys("trainer", "accelerator strategy devices num_nodes precision logger callbacks", Change.JOB),
    **_keys("trainer", "fast_dev_run min_epochs min_steps max_time limit_train_batches", Change.JOB),
    **_keys("trainer", "limit_test_batches limit_predict_batches overfit_batches", Change.JOB),
    **_keys("trainer", "val_check_interval check_val_every_n_epoch num_sanity_val_steps", Change.JOB),
    **_keys("trainer", "log_every_n_steps enable_checkpointing enable_progress_bar", Change.JOB),
    **_keys("trainer", "enable_model_summary accumulate_grad_batches gradient_clip_val", Change.JOB),
    **_keys("trainer", "gradient_clip_algorithm deterministic benchmark inference_mode", Change.JOB),
    **_keys("trainer", "use_distributed_sampler profiler detect_anomaly barebones plugins", Change.JOB),
    **_keys("trainer", "sync_batchnorm reload_dataloaders_every_n_epochs default_root_dir", Change.JOB),
    **_keys("trainer", "enable_autolog_hparams model_registry", Change.JOB),
}
"""Every key of a recipe. docs/streaming.md has the same table; tests see that neither lacks a key."""

SETS = {
    "model.backbone.freeze",
    "model.freeze",
    *(f"{ADAPTER}.{name}" for name in ("parts", "modules", "train")),
}
"""Lists in which neither order nor repetition counts."""
WITHOUT: dict[str, Any] = {
    "model.optimizer.parts": {},
    "model.optimizer.layer_decay": 1.0,
    "model.optimizer.ema_decay": None,
}
"""What stands for doing without, of every key of the kind `STATE`."""


class RecipeChangedError(ValueError):
    """A resumed run cannot have this recipe; `keys` are those that stand in the way."""

    def __init__(self, message: str, keys: Collection[str] = ()) -> None:
        super().__init__(message)
        self.keys = list(keys)


def differences(checkpoint: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys with another value in a checkpoint than now, with both values; what only one has is left out.

    recipe: that of now, as a checkpoint keeps it under `RECIPE`.
    """
    before, now = _flat(checkpoint.get(RECIPE, {})), _flat(recipe)
    contents = {key: (before.pop(name, None), now.pop(name, None)) for key, name in CONTENT.items()}
    changed = {key: (before[key], now[key]) for key in now if key in before and before[key] != now[key]}
    for key, (was, becomes) in contents.items():
        if was is None or becomes is None:
            continue
        changed.pop(key, None)  # the folder may have been moved, or another one put in its place
        if was != becomes:
            changed[key] = f"{before[key]} ({was})", f"{now[key]} ({becomes})"
    return changed


@dataclass(frozen=True)
class Resumed:
    """A resumed run: what a checkpoint is compared with."""

    model: Mapping[str, Any]
    """Options of the V1Module."""
    trainer: Trainer
    data: V1DataModule | None = None

    @property
    def recipe(self) -> dict[str, Any]:
        """What is compared: the options, and what else counts."""
        around: dict[str, Any] = {"trainer.limit_val_batches": self.trainer.limit_val_batches}
        folders = {WEIGHTS: self.model["backbone"]["weights"], BEGIN_FROM: self.model["begin_from"]}
        for key, folder in folders.items():
            if folder is not None and (content := weights_content(folder)) is not None:
                around[CONTENT[key]] = content
        if self.data is not None and self.data.val_content is not None:
            around[VALIDATION] = self.data.val_content
        data = {} if self.data is None else self.data.options
        return {"model": dict(self.model), "data": data, "around": around}

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write down what a resumed run is compared with, and what makes the module again."""
        key = LightningModule.CHECKPOINT_HYPER_PARAMS_KEY
        checkpoint[key] = {**checkpoint.get(key, {}), **self.model}
        checkpoint[RECIPE] = self.recipe


@cache
def weights_content(weights: str) -> str | None:
    """Digits that change with the weights in a local folder; None for other names, and where none lie there.

    Of each file its size and both ends, so that tuned weights differ from those that they were tuned from.
    """
    digest, files = hashlib.sha256(), sorted(Path(weights).glob("*.safetensors"))
    try:
        for path in files:
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(SAMPLE))
                file.seek(max(0, size - SAMPLE))
                digest.update(file.read(SAMPLE))
    except OSError:
        return None
    return digest.hexdigest()[:16] if files else None


def refuse_other_model(checkpoint: Mapping[str, Any], model: Mapping[str, Any], name: str) -> None:
    """Raise RecipeChangedError where the checkpoint's weights are not those of such a model."""
    changed = differences(checkpoint, {"model": model})
    if keys := [key for key in changed if _kind(key) is Change.MODEL]:
        listed = _listed(changed, keys)
        raise RecipeChangedError(f"{name} holds the weights of another model: {listed}", keys)


def refuse_changes(checkpoint: Mapping[str, Any], run: Resumed, name: str) -> None:
    """Raise RecipeChangedError for what a run that resumes from `name` can neither apply nor ignore."""
    if RECIPE not in checkpoint:
        raise RecipeChangedError(
            f"{name} does not say how it was trained (it has no {RECIPE!r}), so it cannot be known "
            "whether this run may resume from it\nbegin a new run"
        )
    kinds = {Change.MODEL, Change.START}
    if run.data is not None and data_state(checkpoint, run.data).get("steps"):
        kinds.add(Change.ORDER)
    _refuse(differences(checkpoint, run.recipe), kinds, name)
    for key, limit, done in (
        ("max_steps", run.trainer.max_steps, steps_of(checkpoint)),
        ("max_epochs", run.trainer.max_epochs, epochs_of(checkpoint)),
    ):
        if limit is not None and 0 <= limit < done:
            raise RecipeChangedError(
                f"trainer.{key} is {limit}, but {name} was written after {done}\n"
                f"give {done} or more, or resume from an earlier checkpoint",
                [f"trainer.{key}"],
            )


def carry_over(checkpoint: dict[str, Any], changed: Mapping[str, tuple[Any, Any]], trainer: Trainer) -> None:
    """Take out of a checkpoint what callbacks would restore though it holds no more; say what has changed.

    The time limit is that of one job, patience the recipe's, and the best value of another measure is none.
    """
    states = callback_states(checkpoint)
    measures = [key for key in changed if _kind(key) is Change.MEASURE]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # a connector sets it
        key = callback.state_key
        watches_loss = str(getattr(callback, "monitor", "")).startswith("val/loss")
        chooses = isinstance(callback, (ModelCheckpoint, EarlyStopping)) and watches_loss
        if isinstance(callback, Timer) or (measures and chooses):
            states.pop(key, None)
        elif isinstance(callback, EarlyStopping) and key in states:
            states[key] = {**states[key], "patience": callback.patience}
    if changed:
        listed = "; ".join(f"{key} {_shown(was)} -> {_shown(now)}" for key, (was, now) in changed.items())
        rank_zero_info(f"changed since the checkpoint: {listed}")
    if measures:
        rank_zero_info(f"val/loss has changed its meaning ({', '.join(measures)}): the best is chosen anew")


def check_resume(path: str, run: Resumed) -> None:
    """Raise ValueError, before anything is loaded, where the run cannot resume from this checkpoint.

    What lies on remote file systems is looked at when it is loaded.
    """
    if Path(path).exists():
        checkpoint = read_checkpoint(path)
        refuse_changes(checkpoint, run, path)
        if run.data is not None and run.data.has_train:
            run.data.refuse_other_order(data_state(checkpoint, run.data))


def _refuse(changed: Mapping[str, tuple[Any, Any]], kinds: Collection[Change], name: str) -> None:
    refused = [key for key in changed if _kind(key) in kinds or WITHOUT.get(key, ...) in changed[key]]
    if not refused:
        return
    listed = _listed(changed, refused)
    amid = " in the middle of an epoch" if all(_kind(key) is Change.ORDER for key in refused) else ""
    raise RecipeChangedError(
        f"{name} cannot be resumed{amid}: {listed}\n"
        "take the old value to resume, or begin a new run: another run.name, without run.resume",
        refused,
    )


def _listed(changed: Mapping[str, tuple[Any, Any]], keys: Collection[str]) -> str:
    return "; ".join(f"{key} was {_shown(changed[key][0])} and is {_shown(changed[key][1])}" for key in keys)


def _kind(key: str) -> Change:
    return CHANGES.get(key, Change.MEASURE)  # VALIDATION is no key


def _flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded options by their keys of a recipe, spelled one way."""
    values = dict(recipe.get("around", {}))
    for key, change in CHANGES.items():
        if change is not Change.CONTENT:
            values.update((key, value) for value in _at(recipe, key))
    if values.get("model.backbone.weights") != "tiny":
        values.pop("model.backbone.tiny", None)
    if values.get(f"{ADAPTER}.kind", ...) is None:  # the others say nothing then
        values = {key: value for key, value in values.items() if not key.startswith(f"{ADAPTER}.")}
        values[f"{ADAPTER}.kind"] = None
    for key in SETS & values.keys():
        values[key] = sorted(set(values[key]))
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _at(nested: Mapping[str, Any], key: str) -> Iterator[Any]:
    """The value under a dotted key, if there is one."""
    value: Any = nested
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return
        value = value[name]
    yield value


def _shown(value: object) -> str:
    return json.dumps(value, default=str)
