"""Optimizers and schedules."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from v1lit.training.config import OptimizerConfig
from v1lit.training.optimizer import Together, build_optimizer, learning_rate_factor

pytestmark = pytest.mark.dependencies


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 8)
        self.hidden = nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, 7)

    def loss(self) -> torch.Tensor:
        return self.lm_head(self.hidden(self.embed(torch.arange(7)))).square().sum()


def steps(model: Small, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()


def test_weight_decay_is_for_matrices_only() -> None:
    optimizer = build_optimizer(Small().named_parameters(), OptimizerConfig(weight_decay=0.1))
    assert {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]} == {
        2: 0.1,
        1: 0.0,
    }
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


def test_muon_takes_hidden_matrices_and_nothing_else() -> None:
    model = Small()
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig(name="muon", lr=1e-2))
    assert isinstance(optimizer, Together)
    muon, adamw = optimizer.optimizers
    assert [p is model.hidden.weight for group in muon.param_groups for p in group["params"]] == [True]
    assert sum(len(group["params"]) for group in adamw.param_groups) == 4
    before = model.loss().item()
    steps(model, optimizer, 20)
    assert model.loss().item() < before


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_saved_and_loaded_it_goes_on_the_same(name: str) -> None:
    config = OptimizerConfig(name=name, lr=1e-2)  # type: ignore[arg-type]
    whole, part = Small(), Small()
    optimizer = build_optimizer(whole.named_parameters(), config)
    steps(whole, optimizer, 6)
    first = build_optimizer(part.named_parameters(), config)
    steps(part, first, 3)
    second = build_optimizer(part.named_parameters(), config)
    second.load_state_dict(first.state_dict())
    steps(part, second, 3)
    for ours, theirs in zip(part.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_schedule_reaches_both_optimizers_after_loading_too() -> None:
    model = Small()
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig(name="muon", lr=1e-2))
    optimizer.load_state_dict(optimizer.state_dict())
    assert isinstance(optimizer, Together)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert {group["lr"] for one in optimizer.optimizers for group in one.param_groups} == {0.005}
    assert schedule.get_last_lr() == [0.005] * 3


def test_nothing_to_train_is_refused() -> None:
    model = Small().requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter is left"):
        build_optimizer(model.named_parameters(), OptimizerConfig())


def test_the_published_schedule() -> None:
    """3 % of 1000 steps rise linearly, then linearly to zero."""
    config = OptimizerConfig()
    factors = [learning_rate_factor(step, 1000, config) for step in range(1000)]
    assert factors[0] == pytest.approx(1 / 31)
    assert factors[29] == pytest.approx(30 / 31)
    assert factors[30] == 1.0
    assert factors[515] == pytest.approx(0.5)
    assert factors[999] == pytest.approx(1 / 970)
    assert factors.index(max(factors)) == 30


@given(
    step=st.integers(0, 2000),
    total=st.integers(1, 1000),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
    warmup=st.floats(0, 1),
    final=st.floats(0, 1),
)
def test_factors_stay_between_final_and_one(
    step: int, total: int, schedule: str, warmup: float, final: float
) -> None:
    config = OptimizerConfig(schedule=schedule, warmup=warmup, final=final)  # type: ignore[arg-type]
    factor = learning_rate_factor(step, total, config)
    assert 0 <= factor <= 1 + 1e-12
    if schedule != "constant" and step >= total:
        assert factor == pytest.approx(final) or math.ceil(warmup * total) >= total


@pytest.mark.parametrize(
    ("key", "value"), [("lr", 0.0), ("warmup", 1.5), ("final", -0.1), ("name", "sgd"), ("schedule", "step")]
)
def test_options_out_of_range_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"optimizer.{key} is"):
        replace(OptimizerConfig(), **{key: value})


def test_adamw_takes_one_kernel_for_the_whole_step_and_lightning_may_clip() -> None:
    optimizer = build_optimizer(Small().named_parameters(), OptimizerConfig())
    assert optimizer.defaults["fused"] is True
    assert optimizer._step_supports_amp_scaling is False  # type: ignore[attr-defined]


def test_one_kernel_gives_what_the_plain_optimizer_gives() -> None:
    ours, theirs = Small(), Small()
    steps(ours, build_optimizer(ours.named_parameters(), OptimizerConfig(lr=1e-2, weight_decay=0.1)), 5)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    steps(theirs, torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), foreach=False), 5)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


class Wide(nn.Module):
    """Wide enough for 8 bits: bitsandbytes keeps tensors below 4096 numbers in 32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Linear(96, 96)

    def loss(self) -> torch.Tensor:
        return (self.hidden(torch.eye(96)) - torch.eye(96)).square().sum()


def test_8_bit_moments_learn_as_32_bit_ones_and_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    config = OptimizerConfig(name="adamw8bit", lr=1e-2)
    whole, part, plain = Wide(), Wide(), Wide()
    steps(plain, build_optimizer(plain.named_parameters(), OptimizerConfig(lr=1e-2)), 20)
    optimizer = build_optimizer(whole.named_parameters(), config)
    steps(whole, optimizer, 20)
    assert {torch.uint8} <= {
        v.dtype for v in optimizer.state[whole.hidden.weight].values() if hasattr(v, "dtype")
    }
    assert whole.loss().item() == pytest.approx(plain.loss().item(), rel=0.1)
    first = build_optimizer(part.named_parameters(), config)
    steps(part, first, 8)
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    second = build_optimizer(part.named_parameters(), config)
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    steps(part, second, 12)
    for ours, theirs in zip(part.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_without_bitsandbytes_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(
        ValueError, match=r"model.optimizer.name is 'adamw8bit'.*pip install 'v1lit\[adamw8bit\]'"
    ):
        build_optimizer(Small().named_parameters(), OptimizerConfig(name="adamw8bit"))
