"""Model cards: what they say of a model, and what the hub reads of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard

from v1lit.backbones.adapters.folder import OURS as ADAPTER
from v1lit.training.card import Origin, licence_of, write_card

CONFIG = {"model_type": "v1lit", "family": "llava", "revisit": {"name": "point_only"}}
RECIPE = """\
# command: v1lit run secret.yaml
# seed: 3
# torch: 2.12.0
data:
  source:
    name: v1g
    path: kjunh/v1g
    mixture: []
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(CONFIG))
    return tmp_path / "model"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "my_run/checkpoints/last.ckpt").mkdir(parents=True)
    (tmp_path / "my_run/recipe.yaml").write_text("data: of an earlier start\n")
    (tmp_path / "my_run/recipe-2.yaml").write_text(RECIPE)
    measured = {"val/answer_accuracy": 0.75, "val/region_iou": None, "train/steps": 7, "lr": 0.1}
    (tmp_path / "my_run/metrics.json").write_text(json.dumps(measured))
    return tmp_path / "my_run"


def card_of(folder: Path, origin: Origin, **more: Any) -> tuple[dict[str, Any], str]:
    """Metadata and text, as the hub's own library reads the file."""
    write_card(folder, origin, "logits differ by nothing", **more)
    card = ModelCard.load(folder / "README.md")
    return card.data.to_dict(), card.text


def test_a_card_has_data_recipe_versions_measures_and_the_base(folder: Path, run: Path) -> None:
    origin = Origin.of("llava-hf/llava-1.5-7b-hf", run / "checkpoints/last.ckpt")
    assert origin.run == run
    data, text = card_of(folder, origin)
    assert data["base_model"] == "llava-hf/llava-1.5-7b-hf"
    assert data["base_model_relation"] == "finetune"
    assert data["pipeline_tag"] == "image-text-to-text"
    assert data["library_name"] == "v1lit"
    assert data["tags"] == ["v1lit", "llava", "point_only"]
    (index,) = data["model-index"]
    assert index["name"] == "my_run"
    assert index["results"][0]["dataset"]["name"] == "kjunh/v1g"
    assert [one["type"] for one in index["results"][0]["metrics"]] == ["val/answer_accuracy"]
    for said in (
        "# my_run",
        '- path: `"kjunh/v1g"`',
        "| `val/answer_accuracy` | 0.75 |",
        "| `train/steps` | 7 |",
        "logits differ by nothing",
        "- torch: 2.12.0",
        "Exported with v1lit ",
        "path: kjunh/v1g",
        "Its licence is not known here",
    ):
        assert said in text, said
    assert "secret.yaml" not in text
    assert "region_iou" not in text
    assert "mixture" not in text.partition("## Recipe")[0]


def test_what_is_not_known_is_said(folder: Path, tmp_path: Path) -> None:
    data, text = card_of(folder, Origin.of("tiny", tmp_path / "somewhere/last.ckpt"))
    assert "Not known: the checkpoint was not in the folder of its run." in text
    assert "Nothing yet." in text
    assert "random weights, which nobody has licensed" in text
    assert "## Recipe" not in text
    assert not {"base_model", "license", "model-index"} & set(data)


def test_the_licence_is_that_of_the_backbones_own_card(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "backbone"
    own.mkdir()
    (own / "README.md").write_text("---\nlicense: other\nlicense_name: qwen-research\n---\n")
    data, text = card_of(folder, Origin(str(own)))
    assert (data["license"], data["license_name"]) == ("other", "qwen-research")
    assert "as its own card says: other, qwen-research" in text
    assert "base_model" not in data, "a folder is no name on the hub"
    cached = {("a/b", "README.md"): str(own / "README.md")}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *asked: cached.get(asked))
    assert licence_of("a/b") == licence_of(str(own))
    assert licence_of("a/c") == {}
    (own / "README.md").write_text("---\nlicense: [\n---\n")
    assert licence_of(str(own)) == {}


def test_adapters_the_published_layout_and_remote_code_have_their_own_words(folder: Path) -> None:
    data, text = card_of(folder, Origin("tiny"), remote="modeling_v1lit.py")
    assert data["library_name"] == "transformers"
    assert "custom_code" in data["tags"]
    assert "`modeling_v1lit.py` is all of its" in text
    (folder / "config.json").write_text(json.dumps({"model_type": "v1"}))
    data, text = card_of(folder, Origin("Qwen/Qwen2.5-VL-7B-Instruct"))
    assert data["tags"] == ["v1lit", "qwen2_5_vl", "point_and_copy"]
    assert "from_published" in text
    (folder / "config.json").unlink()
    (folder / ADAPTER).write_text(json.dumps({"config": CONFIG}))
    data, _ = card_of(folder, Origin("llava-hf/llava-1.5-7b-hf"))
    assert data["base_model_relation"] == "adapter"
