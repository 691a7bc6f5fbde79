"""Folders that people give as weights are told apart before anything is loaded, with what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.stock_folders import edit_json, stock_folder
from safetensors.torch import load_file, save_file

from v1lit.backbones import list_backbones
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.folder import check_exported
from v1lit.backbones.load import check_backbone_config, check_weights, load_backbone
from v1lit.backbones.processor import load_processor
from v1lit.backbones.weight_files import INDEX, SINGLE, WeightsUnavailable
from v1lit.cli.main import main

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4242\n"
Change = Callable[[Path], object]


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were loaded before the mistake was found")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)


def look_at(folder: Path, family: str = "qwen2_5_vl") -> None:
    """What a run does before any data are made."""
    config = BackboneConfig(family, weights=str(folder))
    check_weights(config)
    load_processor(config)


def in_config(**values: object) -> Change:
    return lambda folder: edit_json(folder / "config.json", lambda content: content.update(values))


def in_text_config(**values: object) -> Change:
    return lambda folder: edit_json(
        folder / "config.json", lambda content: content["text_config"].update(values)
    )


def written(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


def without(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def nothing_but(name: str, text: str = "") -> Change:
    def change(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return change


def weights_as(dtype: torch.dtype) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / SINGLE)
        name = next(key for key in tensors if key.endswith("down_proj.weight"))
        save_file({**tensors, name: tensors[name].to(dtype)}, folder / SINGLE)

    return change


def packed(folder: Path) -> None:
    save_file({**load_file(folder / SINGLE), "x.qweight": torch.zeros(2, dtype=torch.int32)}, folder / SINGLE)


LORA = json.dumps({"base_model_name_or_path": "some/base", "peft_type": "LORA"})
KINDS: dict[str, tuple[Change, str]] = {
    "AWQ": (in_config(quantization_config={"quant_method": "awq"}), r"is quantized .*quant_method 'awq'"),
    "bitsandbytes": (in_config(quantization_config={"load_in_4bit": True}), "is quantized"),
    "compressed": (in_text_config(quantization_config={"quant_method": "fp8"}), "is quantized .*'fp8'"),
    "an earlier GPTQ": (written("quantize_config.json", "{}"), "is quantized .*quantize_config.json"),
    "FP8 without a word": (weights_as(torch.float8_e4m3fn), "is quantized .*down_proj.weight.*F8_E4M3"),
    "INT8 without a word": (weights_as(torch.int8), "is quantized .*stored as I8"),
    "packed without a word": (packed, r"is quantized .*x\.qweight"),
    "weights by git-lfs": (written(SINGLE, LFS), r"model\.safetensors is a git-lfs pointer"),
    "tokenizer by git-lfs": (written("tokenizer.json", LFS), r"tokenizer\.json is a git-lfs pointer"),
    "config by git-lfs": (written("config.json", LFS), r"config\.json is a git-lfs pointer"),
    "pickled": (
        lambda folder: (folder / SINGLE).rename(folder / "pytorch_model.bin"),
        "has pickled weights only",
    ),
    "no weights": (without(SINGLE), r"no weights: model\.safetensors is missing"),
    "a shard missing": (
        written(INDEX, '{"weight_map": {"a": "model-1.safetensors"}}'),
        "two sets of weights",
    ),
    "adapter alone": (nothing_but("adapter_config.json", LORA), "holds an adapter of some/base"),
    "adapter weights alone": (nothing_but("adapter_model.safetensors"), "holds an adapter of BASE"),
    "adapter beside": (written("adapter_config.json", LORA), r"an adapter \(adapter_config.json\) beside"),
    "adapter weights beside": (written("adapter_model.safetensors", ""), r"an adapter \(.*\) beside"),
    "other family": (in_config(model_type="qwen2_vl"), r"use --model\.backbone\.name=qwen2_vl"),
    "no family": (in_config(model_type="bert"), r"no backbone of v1lit reads it: .*Qwen/Qwen2-VL-7B"),
    "own code": (in_config(auto_map={"AutoConfig": "x.Y"}), "not the transformers class"),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "has no tokenizer.*\n.*hf download"),
    "no image processor": (without("preprocessor_config.json"), "has no image processor.*\n.*hf download"),
    "image processor by git-lfs": (written("preprocessor_config.json", LFS), "is a git-lfs pointer"),
    "no config": (without("config.json"), r"has weights, but no config\.json"),
    "half a config": (written("config.json", '{"model_type"'), r"config\.json is not valid JSON"),
    "config of a wrong type": (
        in_text_config(hidden_size="big"),
        r"config\.json cannot be read: .*hidden_size",
    ),
    "no such activation": (in_text_config(hidden_act="swish2"), r"no model can be made .*KeyError: 'swish2'"),
    "no such rotation": (in_text_config(rope_parameters={"rope_type": "x"}), "no model can be made"),
    "rotation of another head": (
        in_text_config(
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 1]}
        ),
        r"mrope_section \[1, 1, 1\] of config\.json must add up to half of a head of 16",
    ),
    "other vocabulary": (
        in_text_config(vocab_size=1300),
        "has 1280 rows, but the config's vocab_size is 1300",
    ),
    "empty": (nothing_but("README.md"), r"has no config\.json\n"),
    "GGUF alone": (nothing_but("model-q4.gguf"), r"only weights for inference such as model-q4\.gguf"),
    "hub cache": (
        nothing_but("snapshots/abc/config.json", "{}"),
        r"a folder inside has\ngive .*snapshots/abc$",
    ),
    "exported by v1lit": (in_config(model_type="v1lit"), "v1lit exported.*\n.*M.from_pretrained"),
    "published layout": (in_config(model_type="v1"), "published layout.*\n.*M.from_published"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_folder_is_named_in_two_lines(kind: str, tmp_path: Path) -> None:
    change, message = KINDS[kind]
    folder = stock_folder(tmp_path / "given")
    change(folder)
    with pytest.raises(ValueError, match=message) as error:
        look_at(folder)
    lines = str(error.value).splitlines()
    assert str(folder) in lines[0]
    assert len(lines) <= 2
    assert max(map(len, lines)) < 600


@pytest.mark.parametrize("family", list_backbones())
def test_a_whole_folder_passes(family: str, tmp_path: Path) -> None:
    look_at(stock_folder(tmp_path, family), family)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("last.ckpt", r"checkpoint of a run.*\n.*--run\.resume=.*last\.ckpt"),
        ("model.safetensors", "one file of a checkpoint\ngive its folder"),
        ("model.gguf", "is a GGUF file"),
        ("weights.zip", "is a file, not a checkpoint's folder"),
    ],
)
def test_a_file_is_no_folder(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(WeightsUnavailable, match=message):
        look_at(tmp_path / name)


def test_the_folder_of_a_run_is_known(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "recipe.yaml").write_text("")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(
        WeightsUnavailable, match=r"folder of a run.*\n.*recipe\.yaml --run\.resume=.*last\.ckpt"
    ):
        look_at(tmp_path)


def test_a_large_tree_is_searched_only_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("v1lit.backbones.folder.SEARCHED", 5)
    for number in range(9):
        (tmp_path / str(number)).mkdir()
    with pytest.raises(WeightsUnavailable, match=r"has no config\.json\n"):
        look_at(tmp_path)


def test_the_sizes_of_a_tiny_version_are_no_hindrance_for_a_checkpoint() -> None:
    sizes = {"full_attention_layers": [1]}  # Qwen2.5-VL's own
    check_backbone_config(BackboneConfig("qwen2_vl", weights="some/folder", tiny=sizes))
    with pytest.raises(ValueError, match="full_attention_layers"):
        check_backbone_config(BackboneConfig("qwen2_vl", tiny=sizes))


@pytest.mark.parametrize("name", [SINGLE, "tokenizer.json"])
def test_a_run_looks_at_the_folder_before_it_makes_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("data were made before the mistake was found")

    monkeypatch.setattr("v1lit.data.datamodule.V1DataModule.prepare_data", refuse)
    monkeypatch.chdir(tmp_path)
    folder = stock_folder(tmp_path / "given")
    (folder / name).unlink()
    assert main(["run", "tiny_qwen", f"--model.backbone.weights={folder}"]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert lines[-2].startswith(f"error: {folder} has ")
    assert "hf download" in lines[-1]


def exported(folder: Path) -> Path:
    stock_folder(folder)
    in_config(model_type="v1lit")(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_config(model_type="qwen2_5_vl"), "without a pointer head, not an exported model\ntrain it"),
        (in_config(model_type="v1"), "published layout, not an exported model\n.*from_published"),
        (written(SINGLE, LFS), "git-lfs pointer"),
        (without(SINGLE), "no weights"),
        (written("adapter_config.json", LORA), r"an adapter \(adapter_config.json\) beside"),
        (in_config(quantization_config={"quant_method": "awq"}), "is quantized"),
        (nothing_but("adapter_config.json", LORA), "is an adapter"),
        (nothing_but("model/config.json", "{}"), r"not an exported model.*\ngive its folder .*model$"),
        (nothing_but("README.md"), "not an exported model: it has no config.json"),
        (shutil.rmtree, "there is no folder"),
    ],
)
def test_an_exported_model_is_known_from_others(change: Change, message: str, tmp_path: Path) -> None:
    folder = exported(tmp_path / "model")
    check_exported(folder)
    change(folder)
    with pytest.raises(ValueError, match=message) as error:
        check_exported(folder)
    assert len(str(error.value).splitlines()) <= 2


def test_two_tables_of_words_that_the_config_ties_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    folder = stock_folder(tmp_path)
    in_config(tie_word_embeddings=True)(folder)
    in_text_config(tie_word_embeddings=True)(folder)
    with pytest.raises(ValueError, match="tie_word_embeddings is true, but lm_head and embed_tokens differ"):
        load_backbone(BackboneConfig(weights=str(folder)))
    tensors = load_file(folder / SINGLE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    model = load_backbone(BackboneConfig(weights=str(folder)))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
