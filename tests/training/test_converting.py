"""`v1lit convert`: the published layout and ours, each made of the other bit for bit; and what is refused."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.stock_folders import edit_json, stock_folder
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedTokenizerFast

import v1lit
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import load_processor
from v1lit.cli.main import main
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.model_config import PointAndCopyConfig
from v1lit.pointer.published_processor import read_published_processor, save_published_processor
from v1lit.revisit.config import RevisitConfig
from v1lit.testing.models import build, noise
from v1lit.training import converting
from v1lit.training.converting import convert_folder
from v1lit.training.exporting import ExportMismatchError

pytestmark = pytest.mark.dependencies

FAMILY = "qwen2_5_vl"
SHARD = 300_000
"""Bytes; the tiny model has about a million."""
KINDS: dict[str, tuple[PointerConfig, dict[str, Any], torch.dtype]] = {
    "bf16, tied": (PointerConfig(tie_heads=True), {"tie_word_embeddings": True}, torch.bfloat16),
    "gate": (PointerConfig(gate=True, width=24, key_source="embedding", normalize=True), {}, torch.float32),
    "separate": (PointerConfig(loss="separate", z_weight=0.0), {}, torch.float16),
}


def ours(folder: Path, kind: str = "gate", **processor: Any) -> Path:
    """An exported model."""
    pointer, tiny, dtype = KINDS[kind]
    model = build(FAMILY, pointer, tiny=tiny).to(dtype)
    model.generation_config = GenerationConfig(repetition_penalty=1.05, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    load_processor(BackboneConfig(tiny=tiny, **processor)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ours(tmp_path_factory.mktemp("ours") / "model")


@pytest.fixture(scope="module")
def published(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published") / "model"
    convert_folder(exported, "published", out)
    return out


def content(folder: Path) -> dict[str, bytes]:
    """All but the card, which names the folder that it was made of."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


def without_types(config: Any) -> Any:
    """Without `dtype`, which transformers notes in parts of a config of a model that was opened."""
    if not isinstance(config, dict):
        return config
    return {key: without_types(value) for key, value in config.items() if key != "dtype"}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_every_file_is_the_same(kind: str, tmp_path: Path) -> None:
    first = ours(tmp_path / "0", kind, image={"max_side": 100, "max_pixels": 50_000})
    layouts = {"1": "published", "2": "v1lit", "3": "published", "4": "v1lit"}
    for number, (name, layout) in enumerate(layouts.items()):
        made = convert_folder(tmp_path / str(number), layout, tmp_path / name, shard_bytes=SHARD)  # type: ignore[arg-type]
        assert "tensors are equal" in made.files.check
        assert "differ by 0 at most" in made.files.check
        assert made.files.files > 1
    assert content(tmp_path / "1") == content(tmp_path / "3")
    assert content(tmp_path / "2") == content(tmp_path / "4")
    begun, ended = tensors(first), tensors(tmp_path / "4")
    assert begun.keys() == ended.keys()
    for name, tensor in begun.items():
        assert tensor.dtype == ended[name].dtype
        assert torch.equal(tensor, ended[name])
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("0", "4")]
    assert without_types(configs[0]) == without_types(configs[1])
    assert configs[1]["dtype"] == str(KINDS[kind][2]).removeprefix("torch.")
    for name in ("generation_config.json", "v1lit_processor.json", "preprocessor_config.json"):
        assert (tmp_path / "4" / name).read_bytes() == (first / name).read_bytes()


def test_what_comes_back_answers_as_before(exported: Path, published: Path, tmp_path: Path) -> None:
    convert_folder(published, "v1lit", tmp_path / "back")
    before, after = (
        v1lit.load(folder)(noise((84, 56)), "Where?", max_new_tokens=12)
        for folder in (exported, tmp_path / "back")
    )
    assert before.text == after.text
    assert before.score == after.score


# ---------------------------------------------------------------- what the published code finds


def test_the_published_code_finds_its_names_keys_and_pointers(published: Path) -> None:
    """Source: jun297/v1, v1/configuration_v1.py, v1/modeling_v1.py lines 44-69, v1/processor.py."""
    config = json.loads((published / "config.json").read_text())
    own = {
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta"),
        *("tie_word_embeddings", "vision_config", "rope_scaling", "region_token_id", "copy_token_start"),
        *("use_embeddings_as_keys", "normalize_copy_states", "copy_extraction_layer", "tie_copy_heads"),
        *("copy_hidden_size", "z_loss_weight", "z_loss_top_k", "use_gate", "label_smoothing"),
        *("separate_copy_loss", "do_copy", "image_token_id", "vision_start_token_id", "torch_dtype"),
    }
    assert own <= config.keys()
    assert config["model_type"] == "v1"
    assert 0 <= config["region_token_id"] < config["copy_token_start"]
    assert config["region_token_id"] != config["image_token_id"]
    begin = {name.partition(".")[0] for name in tensors(published)}
    assert begin == {"model", "visual", "lm_head", "_copy_q_head", "_copy_k_head", "gate"}
    tokenizer = json.loads((published / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "Qwen2Tokenizer"
    images = json.loads((published / "preprocessor_config.json").read_text())
    assert (images["min_pixels"], images["max_pixels"]) == (3136, 200704)


def longer(config: PointAndCopyConfig, rows: int) -> PointAndCopyConfig:
    """The config of a model whose embedding table has more rows than there are tokens, as Qwen's has."""
    backbone = deepcopy(config.backbone_config)
    backbone.text_config.vocab_size = rows
    return PointAndCopyConfig(backbone, family=FAMILY)


def test_a_short_tokenizer_is_filled_up_to_the_first_pointer_and_emptied_again(tmp_path: Path) -> None:
    rows = 1300
    processor = load_processor(BackboneConfig(), pointer_start=rows)
    assert processor.vocab_size < rows
    tmp_path.joinpath("full").mkdir()
    save_published_processor(processor, tmp_path / "full")
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path / "full")
    theirs.add_tokens([f"<|copy_{number}|>" for number in range(40)])  # as their `get_processor` does
    assert theirs.convert_tokens_to_ids("<|copy_0|>") == rows
    assert theirs.convert_tokens_to_ids("<|copy_39|>") == rows + 39
    text = "<|im_start|>user\nWhere is it?<|im_end|>"
    assert theirs.encode(text) == processor.encode_text(text)
    theirs.save_pretrained(tmp_path / "full")  # as their `train.py` does beside every checkpoint
    config = longer(build(FAMILY).config, rows)
    for with_ours in (True, False):
        read = read_published_processor(tmp_path / "full", config)
        assert read.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
        assert read.image_options == processor.image_options
        assert read.pointer_start == rows
        if with_ours:
            (tmp_path / "full/v1lit_processor.json").unlink()


def test_a_token_that_stands_elsewhere_is_not_taken_for_a_pointer(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / "odd")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "odd")
    tokenizer.add_tokens(["<|copy_7|>"])
    tokenizer.save_pretrained(tmp_path / "odd")
    with pytest.raises(ValueError, match=r"tokens beyond the 1280 rows.*'<\|copy_7\|>' \(1280\)"):
        convert_folder(tmp_path / "odd", "v1lit", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


def test_tokenizer_and_images_may_come_from_the_backbone(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / "bare")
    for name in ("tokenizer.json", "v1lit_processor.json", "preprocessor_config.json"):
        (tmp_path / "bare" / name).unlink()
    with pytest.raises(ValueError, match=rf"{tmp_path}/bare has no tokenizer"):
        convert_folder(tmp_path / "bare", "v1lit", tmp_path / "out")
    convert_folder(
        tmp_path / "bare", "v1lit", tmp_path / "out", backbone=str(stock_folder(tmp_path / "stock"))
    )
    assert v1lit.load(tmp_path / "out").processor.pointer_start == 1280


# ---------------------------------------------------------------- refused


def test_files_of_two_models_are_refused(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / "mixed")
    edit_json(tmp_path / "mixed/v1lit_processor.json", lambda content: content.update(pointer_start=1290))
    with pytest.raises(ValueError, match=r"at 1280 in config\.json, but at 1290 in v1lit_processor"):
        convert_folder(tmp_path / "mixed", "v1lit", tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 3}, "weights missing: model.layers.2"),
        ({"num_hidden_layers": 1}, "weights unexpected: model.layers.1"),
        ({"intermediate_size": 96}, "weights of another shape: model.layers.0.mlp"),
    ],
)
def test_weights_that_do_not_fit_are_named_as_in_the_file(
    change: dict[str, int], said: str, published: Path, tmp_path: Path
) -> None:
    shutil.copytree(published, tmp_path / "other")
    edit_json(tmp_path / "other/config.json", lambda content: content.update(change))
    with pytest.raises(ValueError, match=said):
        convert_folder(tmp_path / "other", "v1lit", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_written_wrongly_is_found_and_nothing_is_left(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: converting.FolderSource, name: str) -> torch.Tensor:
        value = real(self, name)
        written.append(name)
        return value + 1 if len(written) == 3 else value

    written: list[str] = []
    real = converting.FolderSource.read
    monkeypatch.setattr(converting.FolderSource, "read", spoil)
    with pytest.raises(ExportMismatchError, match="was not written as"):
        convert_folder(published, "v1lit", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_another_family_is_refused_by_name(tmp_path: Path) -> None:
    build("llava").save_pretrained(tmp_path / "llava")
    load_processor(BackboneConfig("llava")).save_pretrained(tmp_path / "llava")
    with pytest.raises(ValueError, match=r"Qwen2\.5-VL only; this model's backbone is llava"):
        convert_folder(tmp_path / "llava", "published", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["llava"]


def test_the_command_says_what_was_compared_and_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"order": "nearest"}
    model = PointAndCopyModel.build(BackboneConfig(), revisit=RevisitConfig(options=options))
    model.save_pretrained(tmp_path / "a")
    load_processor(BackboneConfig()).save_pretrained(tmp_path / "a")
    assert main(["convert", str(tmp_path / "a"), "--to", "published", "--output", str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert f"61 weights, 0.00132 GB in 1 file: {tmp_path / 'b'}" in said
    assert "all 61 tensors are equal" in said
    assert "logits of 40 tokens differ by 0 at most" in said
    assert "place for these options of training: revisit.options.order nearest" in said


@pytest.mark.parametrize(
    ("source", "to", "said"),
    [
        ("nowhere", "v1lit", "there is no folder"),
        ("ours", "v1lit", "is in the v1lit layout already"),
        ("published", "published", "is in the published layout already"),
        ("stock", "published", "qwen2_5_vl checkpoint without a pointer head"),
        ("run", "published", "has no config.json"),
        ("ours", "gguf", "invalid choice"),
    ],
)
def test_mistakes_end_in_two_lines(
    source: str, to: str, said: str, exported: Path, published: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(exported, tmp_path / "run/model")
    places = {"ours": exported, "published": published, "stock": tmp_path / "stock"}
    if source == "stock":
        stock_folder(tmp_path / "stock")
    place = places.get(source, tmp_path / source)
    assert main(["convert", str(place), "--to", to, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.strip().count("\n") <= 1
    assert not (tmp_path / "out").exists()
