"""What v1lit uses of Lightning's insides: each by name, with what breaks without it, and in one file only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from v1lit.training import lightning_internals
from v1lit.training.lightning_internals import (
    callback_states,
    data_state,
    epochs_of,
    is_checkpoint,
    lift_limits,
    put_between_steps,
    set_batches_done,
    set_limits,
    steps_of,
    unscale_before_step,
    weights_of,
)

pytestmark = pytest.mark.dependencies

PACKAGE = Path(__file__).resolve().parents[2] / "v1lit"
DOOR = PACKAGE / "training" / "lightning_internals.py"

USED = {
    "_accelerator_connector": "the Trainer: a job of SLURM is saved and queued again amid a step",
    "_batches_that_stepped": "fit_loop.epoch_loop: logged steps are off by one after resuming",
    "_broadcast_sigterm_tensor": "fit_loop.epoch_loop: every batch of several ranks waits for the GPU",
    "_data_fetcher": "fit_loop: whether a validation comes before the next step is not known",
    "_first_loop_iter": "_logger_connector: the first training log after a validation is lost",
    "_last_lr": "a LambdaLR: the logged learning rate of a resumed run is that of the run before",
    "_logger_connector": "the Trainer: a validation that was interrupted cannot be made up for",
    "_num_ready_batches_reached": "fit_loop.epoch_loop: the last checkpoint of an epoch resumes within it",
    "_should_accumulate": "fit_loop.epoch_loop: checkpoints come amid accumulated batches",
    "_should_check_val_fx": "fit_loop.epoch_loop: a checkpoint before a validation loses the validation",
    "_step_supports_amp_scaling": "AdamW: gradients of a float16 run cannot be clipped",
    "_trainer": "the LightningModule: weights cannot be loaded without a Trainer",
}
"""Private name -> of what, and what breaks when it is gone."""
OTHERS = {
    "_compile_all_devices": "transformers: whether a CPU compiles as well",
    "_model_mapping": "transformers: whether it knows a causal language model of a config",
    "_BatchNorm": "torch: the class of all batch norms",
    "_C": "torch", "_dynamo": "torch", "_nn": "torch", "_parse_to": "torch",
    "_record_memory_history": "torch, documented", "_dump_snapshot": "torch, documented",
    "_gradient_checkpointing_func": "transformers", "_attn_implementation": "transformers",
    "_attn_implementation_internal": "transformers",
    "_get_dtype_plan": "transformers", "_adjust_missing_and_unexpected_keys": "transformers",
    "_parameters": "torch", "_buffers": "torch", "_non_persistent_buffers_set": "torch", "_flatten": "torch",
    "_from_config": "transformers", "_cdata": "torch", "_to_copy": "torch",
    "_asdict": "NamedTuple, documented",
    "_strip_protocol": "fsspec", "_actions": "argparse", "_exit": "os, documented",
    "_replace": "NamedTuple, documented", "_current_frames": "sys, documented",
}  # fmt: skip
"""Private names of other libraries that v1lit uses."""
KEYS = {"loops", "state_dict", "global_step", "fit_loop", "is_last_batch"}
"""Keys of a checkpoint; and all that contain `_progress` or `epoch_loop`."""


def owners(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """An object of each kind that has one of the names."""
    optimizer = torch.optim.AdamW(module.parameters())
    return {
        "fit_loop.epoch_loop": trainer.fit_loop.epoch_loop,
        "fit_loop": trainer.fit_loop,
        "_logger_connector": trainer._logger_connector,
        "a LambdaLR": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        "the Trainer": trainer,
        "AdamW": torch.optim.AdamW(module.parameters(), fused=True),
        "the LightningModule": module,
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> dict[str, Any]:
    """What Lightning writes after two epochs of four steps."""
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=tmp_path, max_epochs=2,
    )  # fmt: skip
    trainer.fit(BoringModel(), datamodule=Counting())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded: dict[str, Any] = torch.load(tmp_path / "x.ckpt", weights_only=True)
    return loaded


class Counting(LightningDataModule):
    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.zeros(4, 32))

    val_dataloader = train_dataloader

    def state_dict(self) -> dict[str, Any]:
        return {"seen": 1}


@pytest.mark.parametrize("name", USED)
def test_lightning_still_has_the_private_name(name: str) -> None:
    place, _, breaks = USED[name].partition(": ")
    owner = owners(Trainer(accelerator="cpu", logger=False, barebones=True), BoringModel())[place]
    assert hasattr(owner, name), f"{type(owner).__name__} has no {name}; {breaks}"


def test_the_table_has_every_private_name_that_is_used() -> None:
    assert {name for name, _ in private_names(DOOR)} - set(OTHERS) == set(USED)


def test_a_fused_optimizer_lets_lightning_undo_the_loss_scale() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], fused=True)
    assert _optimizer_handles_unscaling(optimizer)
    unscale_before_step(optimizer)
    assert not _optimizer_handles_unscaling(optimizer)


# ------------------------------------------------------------------ checkpoints


def test_a_checkpoint_holds_what_is_read_from_it(checkpoint: dict[str, Any]) -> None:
    assert is_checkpoint(checkpoint)
    assert not is_checkpoint({"state_dict": {}})
    assert steps_of(checkpoint) == 8
    assert epochs_of(checkpoint) == 2
    assert set(weights_of(checkpoint)) == {"layer.weight", "layer.bias"}
    assert data_state(checkpoint, Counting()) == {"seen": 1}
    assert data_state(checkpoint, LightningDataModule()) == {}
    assert callback_states(checkpoint) == checkpoint["callbacks"]


def test_lightnings_counters_are_moved_together(checkpoint: dict[str, Any]) -> None:
    current = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    before = dict(current)
    set_batches_done(checkpoint, before["ready"] + 5)
    assert current == {name: value + 5 for name, value in before.items()}


def test_the_difference_within_a_batch_is_kept() -> None:
    current = {"ready": 7, "started": 7, "processed": 7, "completed": 6}
    checkpoint = {"loops": {"fit_loop": {"epoch_loop.batch_progress": {"current": current}}}}
    set_batches_done(checkpoint, 12)
    assert current == {"ready": 12, "started": 12, "processed": 12, "completed": 11}


def test_every_counter_that_is_put_between_steps_is_there(
    checkpoint: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
    monkeypatch.setattr(lightning_internals, "ends_epoch", lambda trainer: True)
    loops = checkpoint["loops"]["fit_loop"]
    names = {"epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress", "epoch_progress"}
    assert names <= set(loops)
    assert "_batches_that_stepped" in loops["epoch_loop.state_dict"]
    put_between_steps(checkpoint, trainer)
    assert set(loops["epoch_loop.batch_progress"]["current"].values()) == {0}


def test_limits_are_lifted_and_put_back() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, barebones=True, max_steps=3, max_epochs=2)
    limits = lift_limits(trainer)
    assert (trainer.max_steps, trainer.max_epochs) == (2**62, -1)
    set_limits(trainer, limits)
    assert (trainer.max_steps, trainer.max_epochs) == (3, 2)


# ------------------------------------------------------------------ one door


def private_names(path: Path) -> Iterator[tuple[str, int]]:
    """Private attributes of objects other than `self`, `cls` and `super()`, with their lines.

    Those that the file defines itself, as a function, a field, or on `self` or `cls`, are its own.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {ast.unparse(node.target) for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)}
    own |= {node.attr for node in attributes if _is_self(node.value) and isinstance(node.ctx, ast.Store)}
    for node in attributes:
        private = node.attr.startswith("_") and not node.attr.startswith("__")
        if private and not _is_self(node.value) and node.attr not in own:
            yield node.attr, node.lineno


def _is_self(node: ast.expr) -> bool:
    return ast.unparse(node) in ("self", "cls", "super()")


def others(pattern: str = "*.py") -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob(pattern)) if path != DOOR]


def test_private_names_of_others_are_those_of_the_tables() -> None:
    found = [f"{path.name}:{line} {name}" for path in others() for name, line in private_names(path)
             if name not in OTHERS]  # fmt: skip
    assert found == [], "of Lightning: use training/lightning_internals.py; of another library: add it above"


def test_no_class_uses_private_names_that_lightning_gave_it() -> None:
    kinds = (LightningModule(), LightningDataModule(), Callback(), Checkpoint())
    theirs = {name for kind in kinds for name in dir(kind) if name.startswith("_") and name[1] != "_"}
    for path in others():
        text = path.read_text(encoding="utf-8")
        if any(f"({type(kind).__name__}" in text for kind in kinds):
            names = {n.attr for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Attribute)}
            assert not names & theirs, path


def test_loops_and_keys_of_checkpoints_are_named_in_one_file() -> None:
    for path in others():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("fit_loop", "epoch_loop", "val_loop"), f"{path}:{node.lineno}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
                key = text in KEYS or ("epoch_loop" in text and " " not in text)
                assert not key, f"{path}:{node.lineno} {text!r}"
