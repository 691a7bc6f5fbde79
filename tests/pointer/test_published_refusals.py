"""What the published layout cannot hold, and folders that do not hold it, are refused by name."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from helpers.stock_folders import edit_json
from safetensors.torch import load_file, save_file

from v1lit.backbones.registry import get_backbone
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.model_config import PointAndCopyConfig
from v1lit.pointer.published import (
    left_out_of_published,
    published_config,
    read_published_config,
    refuse_unpublishable,
    save_published,
)
from v1lit.testing.models import build, processor

PLAIN = PointerConfig(z_weight=0.0)
BACKBONE = get_backbone("qwen2_5_vl").tiny_config(processor("qwen2_5_vl").tokenizer)


def test_only_a_family_that_was_published_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Qwen2\.5-VL only.* llava"):
        save_published(build("llava"), tmp_path / "out")


@pytest.mark.parametrize(
    ("revisit", "said"),
    [
        ({"name": "text_only"}, "holds models that point and copy; revisit.name is text_only"),
        ({"name": "coordinates"}, "revisit.name is coordinates"),
        ({"name": "point_only"}, "revisit.name is point_only"),
        ({"name": "multi_patch"}, "revisit.name is multi_patch"),
        ({"name": "crop"}, "revisit.name is crop"),
        ({"control": "blank_copy"}, "copies what was pointed at; revisit.control is blank_copy"),
        ({"options": {"suppress": "trace"}}, r"no place for such a rule \(revisit.options.suppress: trace\)"),
        ({"options": {"end": "pointer"}}, r"choice of the pointer head \(revisit.options.end: pointer\)"),
    ],
)
def test_what_the_published_code_would_run_as_another_model_is_refused(
    revisit: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=rf"the published layout .*{said}"):
        refuse_unpublishable(PointAndCopyConfig(BACKBONE, revisit=revisit))


def test_options_of_training_alone_are_no_hindrance_and_are_told() -> None:
    options = {"order": "nearest", "max_copies": 9, "suppress": "none"}
    config = PointAndCopyConfig(
        BACKBONE, revisit={"options": options}, pointer={"first_pointer_weight": 2.0, "width": 8}
    )
    refuse_unpublishable(config)
    assert left_out_of_published(config) == {
        "revisit.options.order": "nearest",
        "revisit.options.max_copies": 9,
        "pointer.first_pointer_weight": 2.0,
    }


def test_a_share_of_label_smoothing_is_kept_and_true_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    save_published(build("qwen2_5_vl", PointerConfig(label_smoothing=0.2)), folder)
    assert PointAndCopyModel.from_published(folder).pointer_options.label_smoothing == 0.2
    edit_json(folder / "config.json", lambda content: content.update(label_smoothing=True))
    with pytest.raises(ValueError, match=r"label_smoothing is true; it is a share"):
        PointAndCopyModel.from_published(folder)


def test_how_positions_are_stretched_is_kept(tmp_path: Path) -> None:
    config = deepcopy(BACKBONE)
    stretched = {**config.text_config.rope_parameters, "rope_type": "yarn", "factor": 4.0}
    stretched["original_max_position_embeddings"] = 4096
    config.text_config.rope_parameters = stretched
    written = published_config(PointAndCopyConfig(config), "torch.float32")
    assert written["rope_scaling"]["factor"] == 4.0
    assert written["rope_scaling"]["type"] == "yarn"
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert read_published_config(tmp_path).backbone_config.text_config.rope_parameters == stretched


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
