"""The benchmark of generation: steps take turns, all parts run in tiny sizes, and answers are compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import generate
import pytest
import torch
from page import read_results
from transformers.generation.streamers import BaseStreamer
from turns import ratio, steps_in_turn


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_steps_of_generations_are_taken_in_turn() -> None:
    order: list[str] = []

    def tells(name: str, tokens: int) -> Any:
        def generation(told: BaseStreamer) -> None:
            for number in range(tokens):
                order.append(f"{name}{number}")
                told.put(None)

        return generation

    found = steps_in_turn({"a": tells("a", 4), "b": tells("b", 4)}, repeats=2)
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"] * 2
    assert {name: len(taken) for name, taken in found.items()} == {"a": 4, "b": 4}
    assert ratio({"a": [3.0, 1.0, 2.0], "b": [4.0]}, "a", "b") == 0.5
    with pytest.raises(RuntimeError, match=r"told of \[3, 4\] tokens"):
        steps_in_turn({"a": tells("a", 4), "b": tells("b", 3)}, repeats=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_part_runs_in_tiny_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {name: part for name, part in generate.PARTS.items() if name != "cache"}  # that compiles
    monkeypatch.setattr(generate, "PARTS", plain)
    assert generate.main(["--quick", "--out", str(tmp_path)]) == 0
    groups = read_results(tmp_path / "benchmarks.json")["generation"].groups
    assert list(groups) == [title for title, _ in plain.values()]
    rows = [row for group in groups.values() for row in group]
    assert all(row.value is not None and row.met is None for row in rows)
    assert groups["A running batch"][-1].value == generate.QUICK.load.requests
    assert "## Generation on a CPU" in (tmp_path / "benchmarks.md").read_text()


def test_the_stock_model_has_the_same_weights_and_the_memory_is_that_of_its_tensors() -> None:
    bench = generate.Bench(generate.QUICK, generate.QUICK.small)
    own = dict(bench.model.backbone.named_parameters())
    assert all(own[name].data_ptr() == weight.data_ptr() for name, weight in bench.stock.named_parameters())
    (row,) = generate.memory(generate.QUICK)
    assert (row.value, row.met) == (2 * 4 * generate.QUICK.small.hidden + 5, True)


def test_what_fails_is_listed_and_tiny_figures_stay_out_of_the_docs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(case: generate.Case) -> list[Any]:
        raise RuntimeError("no compiler")

    monkeypatch.setitem(generate.PARTS, "cache", ("Caches", fails))
    assert generate.main(["--quick", "--only", "cache"]) == 1
    assert "Caches: missing" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        generate.main(["--quick"])
