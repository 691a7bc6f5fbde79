"""What a trial will cost is known before it runs, and a budget of tokens or flops becomes steps by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_runs import make_data, tokens, written

from v1lit.cli.recipe import compose
from v1lit.cli.recipe_cli import RecipeCLI
from v1lit.sweep.config import Budget
from v1lit.sweep.cost import StepCost, TrialCost


def config(*changes: str) -> dict[str, Any]:
    found: dict[str, Any] = RecipeCLI(compose("tiny_qwen", changes), parse_only=True).config.as_dict()
    return found


def cost(tmp_path: Path, *changes: str) -> StepCost:
    if not (tmp_path / "data").exists():
        written(tmp_path / "data" / "train", 40)
    found = config(*changes)
    data = make_data(tmp_path / "data", tmp_path, batch_size=2)
    # The weights' sizes are those of the recipe; all examples are alike.
    return TrialCost(found).of_step(data)


def test_a_step_costs_what_its_examples_have_on_all_devices(tmp_path: Path) -> None:
    one = cost(tmp_path)
    assert (one.examples, one.tokens) == (2, 2 * tokens())
    many = cost(tmp_path, "--trainer.accumulate_grad_batches=3", "--trainer.devices=2")
    assert (many.examples, many.tokens) == (12, 12 * tokens())
    assert many.flops == pytest.approx(6 * one.flops)


def test_a_model_with_more_layers_costs_more_flops_and_as_many_tokens(tmp_path: Path) -> None:
    small, large = cost(tmp_path), cost(tmp_path, "--model.backbone.tiny.layers=4")
    assert large.tokens == small.tokens
    assert large.flops > 1.3 * small.flops


def test_devices_that_share_a_micro_batch_count_once(tmp_path: Path) -> None:
    strategy = (
        '--trainer.strategy={"class_path": "v1lit.training.strategies.Sharded", "init_args": {"tensor": 2}}'
    )
    assert cost(tmp_path, "--trainer.devices=4", strategy).tokens == 4 * tokens()


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        (Budget("tokens", 1000), 10),
        (Budget("tokens", 1049), 10),
        (Budget("tokens", 1), 1),
        (Budget("flops", 5e9), 5),
    ],
)
def test_a_budget_becomes_the_steps_that_use_it_up_most_nearly(budget: Budget, steps: int) -> None:
    assert StepCost(examples=4, tokens=100, flops=1e9).steps(budget) == steps


def test_the_bytes_on_the_disk_are_those_of_two_checkpoints_and_the_model() -> None:
    with_export, without = TrialCost(config()), TrialCost(config("--run.export=false"))
    numbers = sum(parameter.numel() for parameter in without.model.parameters())
    assert with_export.disk() - without.disk() == 4 * numbers
    # Muon keeps one moment of matrices and two of the rest.
    assert 2 * 8 * numbers <= without.disk() <= 2 * 12 * numbers


def test_a_trial_with_adapters_costs_and_leaves_what_is_trained(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lora = ("--model.adapter.kind=lora", "--model.adapter.rank=4", "--model.optimizer.name=adamw")
    # A frozen weight has no gradient of its own, and before the first adapter there is none at all.
    assert 1 / 3 < cost(tmp_path, *lora).flops / cost(tmp_path).flops < 2 / 3
    trial = TrialCost(config(*lora))
    trained = [p for p in trial.model.parameters() if p.requires_grad]
    numbers = sum(parameter.numel() for parameter in trained)
    assert numbers < 0.1 * sum(parameter.numel() for parameter in trial.model.parameters())
    assert trial.disk() == 2 * 12 * numbers + 4 * numbers
    half = TrialCost(config(*lora, "--model.backbone.dtype=bfloat16", "--trainer.precision=bf16-mixed"))
    assert half.disk() == trial.disk(), "what learns is kept in float32"
