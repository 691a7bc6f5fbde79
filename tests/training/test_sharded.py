"""A model that is divided over ranks trains as on one: every loss, norm and weight."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.curves import VARIED, Setting, assert_alike, largest_difference, step_losses, train, train_on
from helpers.forked import needs_fork, run_ranks
from torch.distributed.tensor.debug import CommDebugMode

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.efficiency import compiler_name
from v1lit.backbones.registry import list_backbones
from v1lit.data.config import EncodingConfig, PackingConfig
from v1lit.errors import OptionError
from v1lit.parallel.units import Units
from v1lit.pointer.model import PointAndCopyModel
from v1lit.training.strategies import Sharded

pytestmark = [needs_fork, pytest.mark.slow, pytest.mark.dependencies]
needs_compiler = pytest.mark.skipif(shutil.which(compiler_name()) is None, reason="no C++ compiler")

CASES: dict[str, dict[str, Any]] = {
    **VARIED,
    **{family: {"family": family} for family in list_backbones()},
}


@pytest.fixture(scope="module")
def base(scenes: Path) -> Setting:
    return Setting(scenes)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one(base: Setting, case: str) -> None:
    assert_alike(replace(base, **CASES[case]), "fsdp2", 2)


@pytest.mark.parametrize(
    ("strategy", "ranks", "nodes", "accumulate"),
    [("fsdp2", 4, 1, 1), ("hsdp", 4, 2, 1), ("ddp", 2, 1, 2)],
)
def test_any_strategy_trains_as_one(
    base: Setting, strategy: str, ranks: int, nodes: int, accumulate: int
) -> None:
    assert_alike(base, strategy, ranks, nodes, accumulate)


@needs_compiler
@pytest.mark.timeout(600)
@pytest.mark.parametrize("compiler", ["eager", pytest.param("inductor", marks=pytest.mark.soak)])
def test_compiled_and_recomputed_layers_train_as_one(
    base: Setting, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The language part is recomputed too; "eager" traces, and translates nothing to C++."""
    compiled = {"compile": ["language", "vision"], "gradient_checkpointing": ["language"]}
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    assert_alike(replace(base, backbone=compiled), "fsdp2", 2)


@pytest.mark.parametrize("every", [False, True])
def test_accumulated_gradients_are_reduced_once_or_every_time(base: Setting, every: bool) -> None:
    assert_alike(base, Sharded(reduce_every_micro_batch=every), 2, accumulate=2)


def test_packed_rows_train_as_on_one(base: Setting) -> None:
    encoding = EncodingConfig(max_tokens=256, coordinates=False)
    data = {"packing": PackingConfig(length=256), "encoding": encoding}
    assert_alike(replace(base, data=data), "fsdp2", 2, accumulate=2)


def test_ranks_without_an_example_take_part(base: Setting) -> None:
    """24 examples in steps of 16: in the second step of every epoch two of four ranks have none."""
    assert_alike(replace(base, examples=16), "fsdp2", 4)


def test_validation_is_that_of_one_rank(base: Setting) -> None:
    """Of 6 examples in batches of 4, the second rank has 2, and in a second setting none."""
    for size in (4, 6):
        setting = replace(base, steps=3, trainer={"limit_val_batches": 1.0}, data={"val_batch_size": size})
        one, (first, second) = train_on(setting, "auto", 1, accumulate=4)[0], train_on(setting, "fsdp2", 2)
        assert one.val
        assert first.val == second.val == pytest.approx(one.val, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("micro_batch", [0, 1])
def test_a_skipped_micro_batch_leaves_all_ranks_alike(base: Setting, micro_batch: int) -> None:
    """Also the last of a step, whose backward pass would have reduced the gradients of the one before."""
    setting = replace(base, steps=1, spoiled=(micro_batch,), module={"on_nonfinite": "skip"})
    untrained = train_on(replace(base, steps=1, optimizer={"lr": 1e-12}), "fsdp2", 2)[0]
    first, second = train_on(setting, "fsdp2", 2, accumulate=2)
    assert largest_difference(first.weights, second.weights) == 0
    changed = largest_difference(first.weights, untrained.weights)
    assert 1e-4 < changed < 1e-2


def test_muon_trains_as_far_as_its_own_bfloat16_allows(base: Setting) -> None:
    setting = replace(base, optimizer={"name": "muon"})
    one, two = train_on(setting, "auto", 1, accumulate=4), train_on(setting, "fsdp2", 2)
    assert step_losses(two, 1, 4) == pytest.approx(step_losses(one, 4, 4), rel=2e-4)


def test_mixed_precision_computes_in_bfloat16_on_float32_shards(base: Setting) -> None:
    setting = replace(base, precision="bf16-mixed")
    one, two = train_on(setting, "auto", 1, accumulate=4), train_on(setting, "fsdp2", 2)
    exact = step_losses(train_on(base, "fsdp2", 2), 1, 4)
    losses = step_losses(two, 1, 4)
    assert losses != exact
    assert losses == pytest.approx(step_losses(one, 4, 4), rel=5e-3)


def test_a_size_that_does_not_divide_the_ranks_is_refused(base: Setting) -> None:
    with pytest.raises(AssertionError, match=r"trainer\.strategy\.init_args\.shard is 3; 2 ranks cannot"):
        train_on(base, Sharded(shard=3), 2)


def test_a_loss_scale_is_refused() -> None:
    from lightning.pytorch.plugins.precision import MixedPrecision

    strategy = Sharded()
    strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(OptionError, match=r"trainer\.precision .*16-mixed"):
        strategy._own_precision()


def reductions(setting: Setting, every: bool) -> int:
    """How often a rank reduces gradients in a step of two micro-batches."""
    with CommDebugMode() as seen:
        train(setting, Sharded(reduce_every_micro_batch=every), 2, 1, 2)
    return sum(count for name, count in seen.get_comm_counts().items() if "reduce_scatter" in str(name))


def test_a_step_reduces_its_gradients_once_for_every_unit(base: Setting) -> None:
    setting = replace(base, steps=1)
    units = len(Units.of(PointAndCopyModel.build(BackboneConfig(base.family))).modules) + 1
    assert run_ranks(2, reductions, setting, False) == [units, units]
    assert run_ranks(2, reductions, setting, True) == [2 * units, 2 * units]
