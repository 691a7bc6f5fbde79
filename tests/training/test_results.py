"""What follows training is made part by part: one that fails takes neither the others nor the training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import v1lit
from v1lit.backbones.config import BackboneConfig
from v1lit.inference.predictor import Predictor
from v1lit.training import results
from v1lit.training.config import RunConfig
from v1lit.training.module import V1Module
from v1lit.training.results import ChosenWeights, ResultsIncompleteError, load_weights, make_results

RUN = RunConfig(report_examples=3, report_batch_size=2, report_max_new_tokens=3, pictures=1)
CPU = torch.device("cpu")
KEPT = Path("x/last.ckpt")
LAST = ChosenWeights(None, KEPT, 0.5)
FILES = {
    "export": "model/model.safetensors",
    "pictures": "pictures/00.png",
    "metrics.json": "metrics.json",
}
FUNCTIONS = {
    "export": "export",
    "report": "ask_held_out",
    "pictures": "draw_pictures",
    "metrics.json": "write_json",
}


@pytest.fixture(scope="module")
def module() -> V1Module:
    made = V1Module(BackboneConfig("qwen2_5_vl"))
    made.configure_model()
    return made


@pytest.fixture
def make(module: V1Module, make_data: Any, tmp_path: Path) -> Callable[..., dict[str, float]]:
    def make(weights: ChosenWeights = LAST, **options: Any) -> dict[str, float]:
        data = make_data(**options)
        return make_results(module, data, RUN, tmp_path, {"train/steps": 3.0}, weights, CPU)

    return make


def fail(error: BaseException) -> Callable[..., Any]:
    def failing(*args: Any, **options: Any) -> Any:
        raise error

    return failing


@pytest.mark.parametrize("part", FUNCTIONS)
def test_the_other_parts_are_made_when_one_fails_and_it_is_named(
    part: str, make: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    error = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nand so on")
    monkeypatch.setattr(results, FUNCTIONS[part], fail(error))
    with pytest.raises(ResultsIncompleteError) as incomplete:
        make()
    first, second = str(incomplete.value).splitlines()
    assert first == f"the training is done, and its checkpoint is {KEPT}; but this failed: {part}"
    assert second == f"make the rest, without training, with: v1lit report {tmp_path}"
    assert incomplete.value.__cause__ is error
    said = f"{part} failed: RuntimeError: CUDA out of memory. Tried to allocate 2 GiB\n"
    assert said in capsys.readouterr().err
    there = {name for name, file in FILES.items() if (tmp_path / file).exists()}
    assert there == set(FILES) - {part} - ({"pictures"} if part == "report" else set())
    if part != "metrics.json":
        numbers = json.loads((tmp_path / "metrics.json").read_text())
        assert numbers["val/loss"] == 0.5
        assert ("val/examples" in numbers) == (part != "report")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_traceback_shows_all_that_failed(make: Any, monkeypatch: Any) -> None:
    errors = [OSError(28, "No space left on device"), ValueError("a bug")]
    monkeypatch.setattr(results, "export", fail(errors[0]))
    monkeypatch.setattr(results, "ask_held_out", fail(errors[1]))
    with pytest.raises(ResultsIncompleteError, match="export, report") as incomplete:
        make()
    assert incomplete.value.__cause__ is errors[1]
    assert errors[1].__context__ is errors[0]


def test_ctrl_c_stops_all_of_it(make: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(results, "ask_held_out", fail(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        make()
    assert not (tmp_path / "metrics.json").exists()


def test_without_a_model_only_the_numbers_of_training_are_written(make: Any, tmp_path: Path) -> None:
    cut = tmp_path / "best.ckpt"
    cut.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(
        ResultsIncompleteError, match="this failed: measures of validation, opening the model"
    ):
        make(ChosenWeights(cut, cut, 0.5))
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"train/steps": 3.0, "val/loss": 0.5}


def test_an_example_that_cannot_be_asked_is_left_out_and_told(
    make: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    plain, asked = Predictor.batch, list[int]()

    def batch(self: Predictor, questions: Any, **options: Any) -> Any:
        asked.append(len(questions))
        if len(asked) in (1, 3):  # the first two examples together, then the second of them
            raise ValueError("the image is damaged")
        return plain(self, questions, **options)

    monkeypatch.setattr(Predictor, "batch", batch)
    metrics = make()
    assert asked == [2, 1, 1, 1]
    assert metrics["val/examples"] == 2
    assert "left out of the report, 1 examples; the first: " in capsys.readouterr().err


def test_weights_are_loaded_in_their_own_type_and_those_of_another_model_are_refused(tmp_path: Path) -> None:
    module = V1Module(BackboneConfig("qwen2_5_vl"), init_seed=1)
    module.configure_model()
    module.to(torch.bfloat16)
    state = {"state_dict": module.state_dict(), "loops": {}, "v1lit": {"model": module.options}}
    torch.save(state, tmp_path / "x.ckpt")
    other = V1Module(BackboneConfig("qwen2_5_vl"))
    load_weights(other, tmp_path / "x.ckpt")
    for name, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    tied = V1Module(BackboneConfig("qwen2_5_vl"), pointer=v1lit.PointerConfig(tie_heads=True))
    with pytest.raises(
        ValueError, match=r"holds the weights of another model: model.pointer.tie_heads was false"
    ):
        load_weights(tied, tmp_path / "x.ckpt")
