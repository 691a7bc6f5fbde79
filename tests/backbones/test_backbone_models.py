"""What every family offers the pointer: image embeddings, positions, parts, and complete weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from v1lit.backbones import BackboneConfig, list_backbones, load
from v1lit.backbones.load import freeze, load_backbone, part_parameters
from v1lit.backbones.processor import load_processor
from v1lit.backbones.weight_files import WeightsUnavailable
from v1lit.grounding.patch_map import PatchMap
from v1lit.testing.models import noise

pytestmark = pytest.mark.dependencies

PARTS = ["vision", "projector", "language"]
TEXT = 200


class Family:
    """A tiny model with its processor, and helpers to make rows of tokens."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        config = BackboneConfig(name)
        self.model, self.processor = load_backbone(config).eval(), load_processor(config)
        self.backbone = self.processor.backbone

    def row(self, *parts: int | PatchMap) -> list[int]:
        """Numbers are that many text tokens, a patch map is its image."""
        ids: list[int] = []
        for part in parts:
            ids += [TEXT] * part if isinstance(part, int) else [self.processor.image_token_id] * len(part)
        return ids


@pytest.fixture(scope="module", params=list_backbones())
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


@pytest.fixture(scope="module", params=list_backbones())
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A tiny checkpoint in the family's transformers layout."""
    folder = tmp_path_factory.mktemp(request.param)
    made = Family(request.param)
    made.model.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    return request.param, folder


def padded(rows: list[list[int]], left: bool) -> tuple[Tensor, Tensor]:
    length = max(map(len, rows))
    fills = [[0] * (length - len(row)) for row in rows]
    ids = [fill + row if left else row + fill for fill, row in zip(fills, rows, strict=True)]
    ones = [[1] * len(row) for row in rows]
    mask = [fill + one if left else one + fill for fill, one in zip(fills, ones, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


def test_padding_does_not_move_positions(family: Family) -> None:
    tensors, maps = family.processor.images([noise((168, 168)), noise((90, 200), 1)])
    rows = [family.row(2, maps[0], 5), family.row(1, maps[1], 12)]
    ids, mask = padded(rows, left=False)
    right = family.backbone.positions(family.model, ids, mask, **tensors)
    ids, mask_left = padded(rows, left=True)
    left = family.backbone.positions(family.model, ids, mask_left, **tensors)
    assert torch.equal(left[..., mask_left == 1], right[..., mask == 1])
    assert (left[..., mask_left == 0] == 0).all()
    assert (right[..., mask == 0] == 0).all()


def test_positions_without_a_mask_are_those_of_a_full_row(family: Family) -> None:
    tensors, maps = family.processor.images([noise((168, 168))])
    ids = torch.tensor([family.row(2, maps[0], 5)])
    without = family.backbone.positions(family.model, ids, None, **tensors)
    assert torch.equal(without, family.backbone.positions(family.model, ids, torch.ones_like(ids), **tensors))


def test_rows_without_an_image_count_plainly(family: Family) -> None:
    ids, mask = padded([family.row(7), family.row(4)], left=True)
    positions = family.backbone.positions(family.model, ids, mask)
    expected = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 1, 2, 3]])
    assert torch.equal(positions, expected.expand_as(positions))


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_qwen_image_tokens_have_rows_and_columns(name: str) -> None:
    family = Family(name)
    tensors, maps = family.processor.images([noise((168, 84)), noise((56, 112), 1)])
    ids = torch.tensor([family.row(2, maps[0], 3, maps[1], 1)])
    time, row, column = family.backbone.positions(family.model, ids, **tensors)[:, 0]
    first, second = slice(2, 20), slice(23, 31)
    assert row[first].tolist() == [2 + r for r in range(3) for _ in range(6)]
    assert column[first].tolist() == [2 + c for _ in range(3) for c in range(6)]
    assert set(time[first].tolist()) == {2}
    # Text goes on after the longer side: 2 + 6, three tokens, and the second image begins at 11.
    assert time[20:23].tolist() == row[20:23].tolist() == [8, 9, 10]
    assert row[second].tolist() == [11 + r for r in range(4) for _ in range(2)]


@pytest.mark.parametrize("tie", [True, False])
def test_tiny_sizes_reach_the_model(family: Family, tie: bool) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 96,
        "layers": 3,
        "heads": 3,
        "kv_heads": 1,
        "vision_layers": 1,
        "tie_word_embeddings": tie,
    }
    if family.backbone.name == "qwen2_5_vl":
        sizes.update(full_attention_layers=[0], window_size=56)
    if family.backbone.name == "qwen3_vl":
        sizes.update(deep_layers=[0])
    if family.backbone.name == "qwen3_5":
        sizes.update(attention_layers=[0, 2], linear_value_heads=2)
    model = load_backbone(
        BackboneConfig(family.backbone.name, tiny=sizes, dtype="bfloat16", attention="eager")
    )
    text = model.config.get_text_config()
    assert (text.hidden_size, text.num_hidden_layers, text.num_key_value_heads) == (96, 3, 1)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tie
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert text._attn_implementation == "eager"
    tensors, maps = family.processor.images([noise((100, 100))])
    width = 96 * (1 + family.backbone.deep_layers(model.config))
    assert family.backbone.encode_images(model, **tensors).shape == (len(maps[0]), width)


@pytest.mark.parametrize("part", PARTS)
def test_freezing_a_part_stops_its_gradients_and_no_others(family: Family, part: str) -> None:
    model = Family(family.backbone.name).model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = freeze(model, family.backbone, [part])
    inside = part_parameters(model, family.backbone, part)
    assert frozen == sum(inside[name].numel() for name in inside.keys() & trained)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in trained - inside.keys()), name


def test_freezing_an_unknown_part_lists_the_known(family: Family) -> None:
    with pytest.raises(
        ValueError, match=r"'visoin'.*did you mean 'vision'.*allowed: language, projector, vision"
    ):
        freeze(family.model, family.backbone, ["visoin"])


def test_wrong_weights_are_refused_by_name(saved: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = saved
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    gone, bent = [key for key in weights if key.endswith("mlp.down_proj.weight")][:2]
    del weights[gone]
    weights[bent] = weights[bent][:3].clone()
    weights["model.extra.weight"] = torch.zeros(2)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not fit the model") as error:
        load_backbone(BackboneConfig(name, weights=str(tmp_path)))
    text = str(error.value)
    assert "missing (1)" in text
    assert "unexpected (1)" in text
    assert "extra.weight" in text
    assert "of another shape (1)" in text
    assert text.count("down_proj.weight") == 2


def test_many_missing_weights_are_counted_not_listed() -> None:
    report = {
        "missing_keys": {f"layer.{n}" for n in range(40)},
        "unexpected_keys": set(),
        "mismatched_keys": set(),
    }
    with pytest.raises(ValueError, match=r"missing \(40\): layer\.0, .* and 35 more") as error:
        load.refuse_incomplete(report, "x")
    assert len(str(error.value)) < 200


def checkpoint(folder: Path, **config: Any) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("qwen2_5_vl", {"model_type": "qwen2_vl"}, r"use --model\.backbone\.name=qwen2_vl"),
        ("llava", {"model_type": "bert"}, "'bert'.*no backbone of v1lit reads it"),
        ("internvl", {"model_type": "internvl_chat", "auto_map": {}}, "OpenGVLab/InternVL3-1B-hf"),
        ("llava", {"model_type": "internvl_chat"}, "OpenGVLab/InternVL3-1B-hf"),
        (
            "llava",
            {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]},
            "llava-hf/llava-1.5-7b-hf",
        ),
        (
            "llava",
            {"model_type": "llava", "vision_config": {"model_type": "pixtral"}},
            "vision tower is 'pixtral'",
        ),
        (
            "llava_next",
            {
                "model_type": "llava_mistral",
                "architectures": ["LlavaMistralForCausalLM"],
                "image_aspect_ratio": "anyres",
                "mm_patch_merge_type": "spatial_unpad",
            },
            r"is a LlavaMistralForCausalLM, .*\n.*-hf: llava-hf/llava-v1\.6-mistral-7b-hf",
        ),
        (
            "llava",
            {
                "model_type": "llava",
                "architectures": ["LlavaQwenForCausalLM"],
                "image_aspect_ratio": "anyres_max_9",
                "mm_patch_merge_type": "spatial_unpad",
            },
            r"is a LlavaQwenForCausalLM.*\n.*-hf: llava-hf/llava-onevision-qwen2-7b-ov-hf",
        ),
        (
            "llava_next",
            {"model_type": "llava_next", "text_config": {"model_type": "llama"}},
            r"has the decoder 'llama'.*for 'mistral'.*\nregister a variant",
        ),
        (
            "llava_onevision",
            {"model_type": "llava_onevision", "vision_config": {"model_type": "clip_vision_model"}},
            r"vision tower is 'clip_vision_model'.*needs 'siglip_vision_model' with 'full'",
        ),
        ("qwen2_vl", {"model_type": "qwen2_vl", "auto_map": {"a": "b"}}, "Qwen/Qwen2-VL-7B-Instruct"),
        ("qwen3_vl", {"model_type": "qwen3_vl_moe"}, "a Qwen3-VL with experts.*Qwen/Qwen3-VL-8B-Instruct"),
        ("qwen3_5", {"model_type": "qwen3_5_moe"}, "a Qwen3.5 with experts.*Qwen/Qwen3.5-9B"),
        ("qwen3_vl", {"model_type": "qwen3_5_text"}, "alone, without its vision tower.*Qwen/Qwen3.5-9B"),
    ],
)
def test_checkpoints_of_another_kind_are_refused(
    tmp_path: Path, name: str, config: dict[str, Any], message: str
) -> None:
    weights = checkpoint(tmp_path, **config)
    for read in (load_backbone, load_processor):
        with pytest.raises(ValueError, match=message) as error:
            read(BackboneConfig(name, weights=weights))
        assert not isinstance(error.value, WeightsUnavailable)


def unreachable(*args: object, **kwargs: object) -> None:
    raise ConnectionError("[Errno -2] Name or service not known")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: None)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("read", [load_backbone, load_processor])
def test_weights_that_cannot_be_had_are_explained_in_two_lines(read: Any) -> None:
    with pytest.raises(WeightsUnavailable, match="hub cannot be reached") as error:
        read(BackboneConfig(weights="Qwen/Qwen2.5-VL-7B-Instruct"))
    text = str(error.value)
    assert "Qwen/Qwen2.5-VL-7B-Instruct" in text
    assert "--model.backbone.weights=/path/to/folder" in text
    assert "tiny_qwen" in text
    assert text.count("\n") <= 1


def test_a_gated_or_absent_repository_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: None)
    for kind, message in (
        (GatedRepoError, "access is restricted"),
        (RepositoryNotFoundError, "no such repository"),
    ):

        def refuse(*args: object, kind: type[Exception] = kind, **kwargs: object) -> None:
            raise kind.__new__(kind, "refused")

        monkeypatch.setattr(huggingface_hub, "model_info", refuse)
        with pytest.raises(WeightsUnavailable, match=message):
            load_backbone(BackboneConfig(weights="some/repository"))


@pytest.mark.parametrize("weights", ["./nowhere", "/no/such/folder", "~/nothing", "a/b/c"])
def test_a_folder_that_does_not_exist_is_named(weights: str) -> None:
    with pytest.raises(WeightsUnavailable, match="there is no such folder") as error:
        load_backbone(BackboneConfig(weights=weights))
    assert str(Path(weights).expanduser()) in str(error.value)


def test_a_folder_without_weights_is_named(saved: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = saved
    with pytest.raises(WeightsUnavailable, match=r"config\.json"):
        load_backbone(BackboneConfig(name, weights=str(tmp_path)))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(WeightsUnavailable, match=r"model\.safetensors"):
        load_backbone(BackboneConfig(name, weights=str(tmp_path)))


def test_pickled_weights_are_not_read(saved: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = saved
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        load_backbone(BackboneConfig(name, weights=str(tmp_path)))
