"""What was written is compared with what it was: logits by their type's rounding, weights bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.asked import predictor
from safetensors.torch import load_file, save_file

from v1lit.inference.predictor import Predictor
from v1lit.training import comparing
from v1lit.training.comparing import ExportMismatchError, compare_logits
from v1lit.training.results import export

pytestmark = pytest.mark.dependencies


@pytest.mark.parametrize(
    ("kind", "off", "fits"),
    [
        (torch.float32, 9e-5, True),
        (torch.float32, 2e-4, False),
        (torch.float16, 0.009, True),
        (torch.float16, 0.02, False),
        (torch.bfloat16, 0.04, True),
        (torch.bfloat16, 0.06, False),
        (torch.bfloat16, float("nan"), False),
    ],
)
def test_logits_may_differ_by_the_rounding_of_the_coarser_type(
    kind: torch.dtype, off: float, fits: bool
) -> None:
    before = torch.tensor([[[4.0, -2.0], [1.0, 3.0]]])
    after = before.clone()
    after[0, 0, 1] += 4.0 * off
    if fits:
        said = compare_logits(before, after, torch.float32, kind, than="before")
        assert said == f"logits of 2 tokens differ by {4 * off:.1g} at most, of 4"
        return
    with pytest.raises(ExportMismatchError, match="other logits than before: they differ by"):
        compare_logits(before, after, torch.float32, kind, than="before")


@pytest.fixture(scope="module")
def asked() -> Predictor:
    return predictor()


def spoiled(asked: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have one weight of the model written wrongly."""
    real = asked.model.save_pretrained

    def save(folder: Path, **options: Any) -> None:
        real(folder, **options)
        tensors = load_file(Path(folder, "model.safetensors"))
        name = next(name for name in tensors if name.endswith("mlp.down_proj.weight"))
        tensors[name] = tensors[name] * 1.5
        save_file(tensors, Path(folder, "model.safetensors"), metadata={"format": "pt"})

    monkeypatch.setattr(asked.model, "save_pretrained", save)


@pytest.mark.parametrize("free", [None, 1000])
def test_a_run_compares_what_it_leaves_with_the_model_in_memory(
    free: int | None, asked: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "available_memory", lambda: free)
    asked.model.train()
    said = export(asked, tmp_path / "model")
    assert asked.model.training
    if free is None:
        assert said.startswith("logits of 40 tokens differ by 0 at most")
    else:
        assert "tensors are equal to the model's, bit for bit; logits need 0.0 GB of memory" in said
    shutil.rmtree(tmp_path / "model")
    spoiled(asked, monkeypatch)
    with pytest.raises(ExportMismatchError, match=r"in memory|down_proj\.weight was not written"):
        export(asked, tmp_path / "model")
    assert not [*tmp_path.iterdir()]
