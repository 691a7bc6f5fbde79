"""What the published layout cannot hold, and folders that do not hold it, are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.published import save_published
from v1lit.testing.models import build

PLAIN = PointerConfig(z_weight=0.0)


def test_only_a_family_that_was_published_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Qwen2\.5-VL only.* llava"):
        save_published(build("llava"), tmp_path / "out")


def test_an_option_without_a_key_in_the_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"label smoothing of 0 or 0\.1, not 0\.2"):
        save_published(build("qwen2_5_vl", PointerConfig(label_smoothing=0.2)), tmp_path / "out")


def test_a_folder_is_never_written_over(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists already"):
        save_published(build("qwen2_5_vl", PLAIN), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        PointAndCopyModel.from_published(tmp_path)


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ("model.embed_tokens.weight", r"missing model\.embed_tokens\.weight"),
        ("model.norm.weight", r"missing \['backbone\.model\.language_model\.norm\.weight'\]"),
    ],
)
def test_a_weight_that_is_missing_is_named(tmp_path: Path, theirs: str, said: str) -> None:
    folder = tmp_path / "published"
    save_published(build("qwen2_5_vl", PLAIN), folder)
    weights = load_file(folder / "model.safetensors")
    del weights[theirs]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=said):
        PointAndCopyModel.from_published(folder)
