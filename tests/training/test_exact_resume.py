"""A run that is cut off anywhere and goes on does the very same as one that never stopped."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers.counted_runs import Plan, Record, run_part
from hypothesis import given, settings
from hypothesis import strategies as st

from v1lit.training.checkpoints import LAST

pytestmark = pytest.mark.dependencies

BY_STEP = {"check_val_every_n_epoch": None}
ENDS = {
    "steps": {"max_steps": 7, "max_epochs": -1},
    "epochs": {"max_epochs": 3},
    "whichever is first": {"max_steps": 6, "max_epochs": 5},
}
VALIDATIONS = {
    "epoch": {"check_val_every_n_epoch": 1},
    "second epoch": {"check_val_every_n_epoch": 2},
    "fourth batch": {"val_check_interval": 4, **BY_STEP},
    "third batch": {"val_check_interval": 3, **BY_STEP},  # amid an accumulated step
}


@st.composite
def plans(draw: st.DrawFn) -> str:
    """As a key: a plan holds dictionaries."""
    sized = draw(st.booleans())
    # Where the length of an epoch is not known, it holds whole steps, as the training loader sees to.
    batches, accumulate = draw(st.sampled_from([(5, 1), (4, 2)] + [(5, 2), (3, 2)] * sized))
    end = draw(st.sampled_from(["steps", "whichever is first"] + ["epochs"] * sized))
    validation = draw(st.sampled_from(list(VALIDATIONS)))
    return f"{batches}/{accumulate}/{int(sized)}/{end}/{validation}/{draw(st.sampled_from([1, 3]))}"


def read_plan(key: str) -> Plan:
    batches, accumulate, sized, end, validation, every = key.split("/")
    options = {"accumulate_grad_batches": int(accumulate), **ENDS[end], **VALIDATIONS[validation]}
    return Plan(int(batches), bool(int(sized)), options, int(every))


@cache
def undisturbed(key: str) -> tuple[Record, int]:
    """What a run does, and how many hooks it has."""
    record = Record()
    with tempfile.TemporaryDirectory() as folder:
        hooks = run_part(Path(folder), read_plan(key), record)
    assert hooks is not None
    return record, hooks


@pytest.mark.slow
@pytest.mark.timeout(300)
@settings(max_examples=40)
@given(plans(), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.booleans()), min_size=1, max_size=3))
def test_what_a_run_does_does_not_depend_on_where_it_was_cut_off(
    key: str, interrupts: list[tuple[float, bool]]
) -> None:
    """Batches, learning rates, weights, validations, the best of them and the logs, by step."""
    expected, hooks = undisturbed(key)
    record = Record()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for share, polite in interrupts:
            if run_part(folder, read_plan(key), record, at=1 + int(share * hooks), polite=polite) is not None:
                break
        else:
            assert run_part(folder, read_plan(key), record) is not None
    assert asdict(record) == asdict(expected)


def test_a_finished_run_that_goes_on_for_longer_follows_the_schedule_of_its_new_length(
    tmp_path: Path,
) -> None:
    options = {"max_epochs": -1, "check_val_every_n_epoch": 9}
    record = Record()
    run_part(tmp_path, Plan(5, True, {"max_steps": 4, **options}), record)
    run_part(tmp_path, Plan(5, True, {"max_steps": 8, **options}), record)
    rates = [record.rates[step] for step in range(8)]
    assert rates == pytest.approx(
        [0.05 * (1 - step / 4) for step in range(4)] + [0.025, 0.01875, 0.0125, 0.00625]
    )
    assert [float(record.logged["rate", step]) for step in range(8)] == pytest.approx(rates)
    assert sorted(record.batches.values()) == [[(0, n)] for n in range(5)] + [[(1, n)] for n in range(3)]


def test_checkpoints_are_saved_at_the_end_of_steps_before_the_first_validation(tmp_path: Path) -> None:
    plan = Plan(8, True, {"max_epochs": 1, "accumulate_grad_batches": 2}, every=1)
    run_part(tmp_path, plan, Record(), at=9)  # epoch, then 4 batches of two hooks each
    state = torch.load(tmp_path / "checkpoints" / LAST, weights_only=True)
    assert state["global_step"] == 1
    assert state["Numbers"] == {"last": [0, 1]}
