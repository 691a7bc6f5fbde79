"""DeepSpeed's engine trains as one process does, and its checkpoints are those of every other strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.curves import (
    VARIED,
    NotedModule,
    Setting,
    assert_alike,
    largest_difference,
    step_losses,
    train_on,
)
from helpers.forked import needs_fork
from helpers.parted_runs import assert_no_way_matters, in_parts

import v1lit
from v1lit.data.config import EncodingConfig, PackingConfig
from v1lit.errors import OptionError
from v1lit.training.deepspeed_strategy import DeepSpeedZero3
from v1lit.training.exporting import export_checkpoint
from v1lit.training.module import V1Module
from v1lit.training.saved_state import read_checkpoint

pytestmark = [needs_fork, pytest.mark.slow, pytest.mark.timeout(400)]
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    **VARIED,
    "weights that decay": {"optimizer": {"weight_decay": 0.1}},
    "numbers that ranks do not divide": {"pointer": {"width": 33}},
    "qwen2_vl": {"family": "qwen2_vl"},
    "llava": {"family": "llava"},
    "internvl": {"family": "internvl"},
}


@pytest.fixture(scope="module")
def base(scenes: Path) -> Setting:
    return Setting(scenes)


@pytest.fixture
def zero3() -> DeepSpeedZero3:
    """Divides even the smallest parameters, of which it would keep those of the tiny models."""
    return DeepSpeedZero3(keep_whole=0, process_group_backend="gloo", timeout=50)


@needs_deepspeed
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one(base: Setting, zero3: DeepSpeedZero3, case: str) -> None:
    assert_alike(replace(base, **CASES[case]), zero3, 2)


@needs_deepspeed
def test_parameters_that_stay_whole_train_as_well(base: Setting) -> None:
    assert_alike(base, "deepspeed_zero3", 2)


@needs_deepspeed
def test_packed_rows_and_accumulation_train_as_on_one(base: Setting, zero3: DeepSpeedZero3) -> None:
    encoding = EncodingConfig(max_tokens=256, coordinates=False)
    data = {"packing": PackingConfig(length=256), "encoding": encoding}
    assert_alike(replace(base, data=data), zero3, 2, accumulate=2)


@needs_deepspeed
def test_ranks_without_an_example_take_part(base: Setting, zero3: DeepSpeedZero3) -> None:
    """24 examples in steps of 16: in the second step of every epoch two of four ranks have none."""
    assert_alike(replace(base, examples=16), zero3, 4)


@needs_deepspeed
def test_validation_is_that_of_one_rank(base: Setting, zero3: DeepSpeedZero3) -> None:
    """Of 6 examples in batches of 6 the second rank has none."""
    setting = replace(base, steps=3, trainer={"limit_val_batches": 1.0}, data={"val_batch_size": 6})
    one, (first, second) = train_on(setting, "auto", 1, accumulate=4)[0], train_on(setting, zero3, 2)
    assert one.val
    assert first.val == second.val == pytest.approx(one.val, rel=1e-5, abs=1e-6)


@needs_deepspeed
@pytest.mark.parametrize("micro_batch", [0, 1])
def test_a_skipped_micro_batch_leaves_all_ranks_alike(
    base: Setting, zero3: DeepSpeedZero3, micro_batch: int
) -> None:
    setting = replace(base, steps=1, spoiled=(micro_batch,), module={"on_nonfinite": "skip"})
    fsdp2 = train_on(setting, "fsdp2", 2, accumulate=2)[0]
    first, second = train_on(setting, zero3, 2, accumulate=2)
    assert largest_difference(first.weights, second.weights) == 0
    assert largest_difference(first.weights, fsdp2.weights) < 3e-5


def with_endless_gradients(module: NotedModule, batch: Any) -> Any:
    out = V1Module.forward(module, batch)
    assert out.loss is not None
    out.loss.register_hook(lambda gradient: gradient * float("inf"))
    return out


@needs_deepspeed
def test_a_step_is_not_left_out_silently(
    base: Setting, zero3: DeepSpeedZero3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NotedModule, "forward", with_endless_gradients)
    with pytest.raises(AssertionError, match="the norm of the gradients is NaN or infinite"):
        train_on(base, zero3, 2)


@needs_deepspeed
def test_mixed_precision_computes_in_bfloat16(base: Setting, zero3: DeepSpeedZero3) -> None:
    setting = replace(base, precision="bf16-mixed")
    one, two = train_on(setting, "auto", 1, accumulate=4), train_on(setting, zero3, 2)
    losses = step_losses(two, 1, 4)
    assert losses != step_losses(train_on(base, zero3, 2), 1, 4)
    assert losses == pytest.approx(step_losses(one, 4, 4), rel=5e-3)


@needs_deepspeed
def test_a_run_goes_to_ddp_and_fsdp2_and_back(
    make_module: Callable[..., Any], make_data: Callable[..., Any], tmp_path: Path
) -> None:
    ways = {
        "fsdp2": [(2, "deepspeed", 2), (2, "sharded", 4), (2, "deepspeed", 6)],
        "ddp": [(2, "plain", 2), (2, "deepspeed", 4), (2, "plain", 6)],
        "ranks": [(4, "deepspeed", 2), (2, "deepspeed", 4), (1, "deepspeed", 6)],
    }
    assert_no_way_matters((make_module, make_data), tmp_path, ways)


@needs_deepspeed
def test_a_checkpoint_is_shared_out_over_ranks_and_exported(
    make_module: Callable[..., Any], make_data: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    in_parts((make_module, make_data), folder, [(2, "deepspeed", 1)])
    sizes = [path.stat().st_size for path in sorted((folder / "last.ckpt").glob("rank-*.safetensors"))]
    assert len(sizes) == 2
    assert max(sizes) < 0.7 * sum(sizes)
    export_checkpoint(folder / "last.ckpt", tmp_path / "model")
    exported = v1lit.load(tmp_path / "model").model.state_dict()
    for name, value in read_checkpoint(folder / "last.ckpt")["state_dict"].items():
        assert torch.equal(exported[name.removeprefix("model.")], value), name


@needs_deepspeed
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optimizer": {"name": "muon"}}, r"model\.optimizer\.name is 'muon'"),
        ({"precision": "bf16-true"}, r"trainer\.precision is 'bf16-true'"),
        ({"backbone": {"compile": ["language"]}}, r"model\.backbone\.compile"),
        ({"trainer": {"gradient_clip_algorithm": "value"}}, r"trainer\.gradient_clip_algorithm is 'value'"),
    ],
)
def test_what_was_not_tried_is_refused_by_name(
    base: Setting, zero3: DeepSpeedZero3, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        train_on(replace(base, **changed), zero3, 2)


def test_without_deepspeed_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("v1lit.training.deepspeed_strategy.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"trainer\.strategy .*pip install 'v1lit\[deepspeed\]'"):
        DeepSpeedZero3()
