"""Checkpoints of sharded runs: resumed by any strategy on any number of ranks, as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.forked import needs_fork, run_ranks
from helpers.parted_runs import TOTAL, assert_no_way_matters, in_parts
from lightning import Trainer

import v1lit
from v1lit.parallel.folder_writer import FolderWriter
from v1lit.parallel.shard_files import is_complete
from v1lit.parallel.weight_stream import shared_names
from v1lit.training.checkpoints import checkpoint_to_resume, newest_checkpoint
from v1lit.training.config import OptimizerConfig, RunConfig
from v1lit.training.module import V1Module
from v1lit.training.run import run_training, trainer_defaults
from v1lit.training.saved_run import saved_weights
from v1lit.training.saved_state import load_parts, read_checkpoint, split
from v1lit.training.strategies import Sharded

pytestmark = pytest.mark.dependencies


@needs_fork
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_goes_from_ranks_to_ranks_and_strategy_to_strategy(
    make_module: Any, make_data: Any, tmp_path: Path
) -> None:
    ways = {
        "4-2-1": [(4, "sharded", 2), (2, "sharded", 4), (1, "plain", 6)],
        "ddp-fsdp-ddp": [(2, "plain", 2), (2, "sharded", 4), (2, "plain", 6)],
        "1-4": [(1, "plain", 3), (4, "sharded", 6)],
        "tensor": [(4, "tensor", 2), (2, "sharded", 4), (2, "tensor", 6)],
        "context": [(4, "context", 2), (2, "sharded", 4), (2, "context", 6)],
    }
    assert_no_way_matters((make_module, make_data), tmp_path, ways)


@needs_fork
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_state_of_muon_goes_with_it(make_data: Any, tmp_path: Path) -> None:
    """Its iteration runs in bfloat16, so the losses of unlike ranks are alike to 1e-4 only."""

    def make() -> V1Module:
        options = OptimizerConfig(name="muon", lr=1e-3, schedule="linear")
        return V1Module(v1lit.BackboneConfig("qwen2_5_vl"), optimizer=options)

    losses, examples, _ = in_parts((make, make_data), tmp_path / "one/checkpoints", [(1, "plain", TOTAL)])
    parts = [(1, "plain", 2), (2, "sharded", 4), (1, "plain", 6)]
    found = in_parts((make, make_data), tmp_path / "three/checkpoints", parts)
    assert found[1] == examples
    assert found[0] == pytest.approx(losses, abs=1e-4)


# ------------------------------------------------------------------ a whole run


def whole_run(make_module: Any, make_data: Any, folder: Path, resume: str | None) -> dict[str, float]:
    """One of two ranks of a sharded run with everything that belongs to it."""
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=Sharded(process_group_backend="gloo", timeout=50), max_steps=2,
        num_sanity_val_steps=0, val_check_interval=1, limit_val_batches=1,
        **trainer_defaults(folder, checkpoint_every=1),
    )  # fmt: skip
    run = RunConfig(name="run", resume=resume, report_examples=2, report_max_new_tokens=4, pictures=1)
    return run_training(make_module(), make_data(batch_size=4), trainer, run, folder)


@needs_fork
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_sharded_run_leaves_what_every_run_leaves(
    make_module: Any, make_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics, _ = run_ranks(2, whole_run, make_module, make_data, tmp_path, "auto")
    assert metrics["train/steps"] == 2
    assert "val/examples" in metrics
    last, best = tmp_path / "checkpoints/last.ckpt", tmp_path / "checkpoints/best.ckpt"
    assert sorted(path.name for path in last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert is_complete(last)
    assert is_complete(best)
    assert {path.name for path in tmp_path.iterdir()} >= {"model", "pictures", "metrics.json"}
    weights, steps = saved_weights(tmp_path)
    assert (weights.load, steps) == (best, 2)
    expected = {
        name.removeprefix("model."): value for name, value in read_checkpoint(best)["state_dict"].items()
    }
    exported = v1lit.load(tmp_path / "model").model.state_dict()
    assert all(torch.equal(exported[name], value) for name, value in expected.items())
    module = V1Module.load_from_checkpoint(best, weights_only=True)
    assert all(torch.equal(module.model.state_dict()[name], value) for name, value in expected.items())
    # With nothing left to do, it is the end that is made again, from what is there.
    again, _ = run_ranks(2, whole_run, make_module, make_data, tmp_path, "last")
    assert again["train/steps"] == 2


# ------------------------------------------------------------------ found and refused


def a_checkpoint(path: Path, module: V1Module, **more: Any) -> Path:
    content = {"state_dict": module.state_dict(), "loops": {}, "hyper_parameters": module.options, **more}
    writer = FolderWriter(0, lambda own: [own])
    writer.begin(path, *split(content, [], shared_names(module)))
    writer.settle()
    return path


def test_the_newest_complete_one_is_found_whatever_a_crash_has_left(make_module: Any, tmp_path: Path) -> None:
    module = make_module()
    module.configure_model()
    folder = tmp_path / "checkpoints"
    best = a_checkpoint(folder / "best.ckpt", module, global_step=1)
    (folder / "last.ckpt").mkdir()  # without what is written last
    assert newest_checkpoint(tmp_path) == best
    (folder / "last.ckpt").rmdir()
    waiting = a_checkpoint(folder / "last.ckpt", module, global_step=2).rename(folder / ".last.ckpt.0a.tmp")
    assert newest_checkpoint(tmp_path) == waiting
    assert checkpoint_to_resume("auto", tmp_path) == str(waiting)
    a_checkpoint(folder / "last.ckpt", module, global_step=3)
    assert newest_checkpoint(tmp_path) == folder / "last.ckpt"
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_folder_that_is_no_checkpoint_of_a_run_is_refused(make_module: Any, tmp_path: Path) -> None:
    writer = FolderWriter(0, lambda own: [own])
    writer.begin(tmp_path / "a.ckpt", {}, {"x": 1})
    writer.settle()
    with pytest.raises(ValueError, match="no checkpoint of a training run: its state has x"):
        read_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"complete\.json"):
        read_checkpoint(tmp_path)


def test_a_checkpoint_that_is_taken_for_a_model_is_told_how_to_become_one(
    make_module: Any, tmp_path: Path
) -> None:
    module = make_module()
    module.configure_model()
    path = a_checkpoint(tmp_path / "a.ckpt", module)
    torch.save({}, tmp_path / "b.ckpt")
    for checkpoint in (path, tmp_path / "b.ckpt"):
        with pytest.raises(ValueError, match=f"v1lit export {checkpoint} OUT"):
            v1lit.load(checkpoint)
        with pytest.raises(ValueError, match=f"--run.resume={checkpoint}"):
            V1Module(v1lit.BackboneConfig("qwen2_5_vl", weights=str(checkpoint))).configure_model()


def test_weights_of_another_model_are_refused_by_name(make_module: Any, tmp_path: Path) -> None:
    module = make_module()
    module.configure_model()
    path = a_checkpoint(tmp_path / "a.ckpt", module)
    del module.model.pointer_head.key
    with pytest.raises(ValueError, match=r"weights unexpected: model\.pointer_head\.key"):
        load_parts(path, module, [])
    module.more = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"weights missing: more\.bias"):
        load_parts(path, module, [])
