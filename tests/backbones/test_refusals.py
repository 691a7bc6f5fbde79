"""What no backbone can be or open is refused with what was given and what is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.efficiency import part_layers
from v1lit.backbones.hub import hub_errors
from v1lit.backbones.image_processors import PROCESSOR_FILE
from v1lit.backbones.processor import Processor, load_processor
from v1lit.backbones.registry import get_backbone
from v1lit.backbones.weight_files import WeightsUnavailable
from v1lit.pointer.model_config import PointAndCopyConfig
from v1lit.testing.models import build


def test_a_conversation_has_three_roles() -> None:
    with pytest.raises(ValueError, match="'narrator'"):
        get_backbone("llava").chat.marks("narrator")


def test_only_parts_of_layers_can_be_recomputed() -> None:
    model = build("llava")
    with pytest.raises(ValueError, match="'projector'"):
        part_layers(model.backbone, model.family, "projector")


def test_damaged_weights_are_not_said_to_be_out_of_reach(tmp_path: Path) -> None:
    with (
        pytest.raises(WeightsUnavailable, match=r"are damaged: cut off\ndelete them"),
        hub_errors(str(tmp_path)),
    ):
        raise SafetensorError("cut off")


@pytest.mark.parametrize(
    ("size", "said"),
    [({"height": 224}, "shortest_edge and longest_edge"), ({"shortest_edge": 90_000_000}, "max_pixels")],
)
def test_limits_of_pixels_are_two_and_in_order(size: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        get_backbone("qwen2_5_vl").patch_map((64, 64), size=size)


def test_a_tower_whose_tokens_make_no_grid_is_refused() -> None:
    family = get_backbone("internvl")
    config = {"architectures": [family.model_class], "vision_feature_select_strategy": "full"}
    with pytest.raises(ValueError, match="'full'"):
        family.check_checkpoint(config, "folder")


def test_pointers_begin_within_the_vocabulary() -> None:
    inner = build("llava").config.backbone_config
    for start in (0, inner.get_text_config().vocab_size + 1):
        with pytest.raises(ValueError, match=f"pointer_start is {start}"):
            PointAndCopyConfig(inner, family="llava", pointer_start=start)


# ---------------------------------------------------------------- saved processors


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    load_processor(BackboneConfig()).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"views": "none"}, "'none'"),
        ({"views": None, "pointer_start": "many"}, "pointer_start"),
        ({"image": 3}, "cannot be read"),
        ({"schema_version": 0}, "schema_version must be"),
    ],
)
def test_a_processor_that_was_changed_by_hand_is_refused(
    saved: Path, changes: dict[str, Any], said: str
) -> None:
    path = saved / PROCESSOR_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=said):
        Processor.from_pretrained(saved)


def test_a_key_that_a_saved_processor_lacks_is_named(saved: Path) -> None:
    path = saved / PROCESSOR_FILE
    content = json.loads(path.read_text())
    del content["views"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="lacks the key 'views'"):
        Processor.from_pretrained(saved)
