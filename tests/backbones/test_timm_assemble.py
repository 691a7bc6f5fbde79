"""`v1lit assemble` joins a tower and a language model that lie in files, and refuses what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.timm_towers import NAFLEX, VIT
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, LlamaConfig, Qwen3Config

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.load import load_backbone
from v1lit.backbones.processor import load_processor
from v1lit.backbones.tiny import SIZES, text_sizes, tiny_tokenizer
from v1lit.cli.main import main
from v1lit.testing import assert_parity
from v1lit.testing.models import noise

timm = pytest.importorskip("timm", reason="timm is not installed")
pytestmark = pytest.mark.dependencies

SIGLIP = "vit_base_patch16_siglip_224.v2_webli"
ARGUMENTS = {**VIT, "img_size": 96}


def save_language(folder: Path, rows: int = 0, image_token: bool = True, **changes: Any) -> Path:
    tokenizer = tiny_tokenizer()
    if not image_token:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content["added_tokens"] = [
            {**one, "content": "<|unused|>"} if one["content"] == "<|image_pad|>" else one
            for one in content["added_tokens"]
        ]
        content["model"]["vocab"] = {
            "<|unused|>" if word == "<|image_pad|>" else word: number
            for word, number in content["model"]["vocab"].items()
        }
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(content)),
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
        )
    torch.manual_seed(1)
    sizes = text_sizes(tiny_tokenizer(), SIZES, "<|im_end|>")
    config = Qwen3Config(**{**sizes, "head_dim": 16, **({"vocab_size": rows} if rows else {}), **changes})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language(tmp_path_factory.mktemp("language"), tie_word_embeddings=True)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in timm's layout: weights with pooling and classifier, and what they are."""
    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(2)
    made = timm.create_model(SIGLIP, num_classes=3, **ARGUMENTS)
    save_file(made.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": SIGLIP}))
    return folder


Assemble = Callable[..., tuple[int, str]]


@pytest.fixture
def assemble(tower: Path, language: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Assemble:
    """Runs the command; returns its exit code and what it said."""

    def run(**changes: Any) -> tuple[int, str]:
        given = {
            "tower": tower,
            "tower-arguments": json.dumps(ARGUMENTS),
            "language": language,
            "out": tmp_path / "out",
            **changes,
        }
        capsys.readouterr()  # what making the parts has said
        code = main(["assemble", *(f"--{key}={value}" for key, value in given.items())])
        told = capsys.readouterr()
        return code, told.out + told.err

    return run


def test_a_folder_of_the_parts_opens_with_the_weights_of_both(
    assemble: Assemble, tower: Path, language: Path, tmp_path: Path
) -> None:
    code, said = assemble(projector="pixel_shuffle")
    assert code == 0, said
    assert "an image becomes 3 x 3 tokens of 32 pixels, of 96 x 96" in said
    assert "left out of the tower: attn_pool, head" in said
    assert f"--model.backbone.weights={tmp_path / 'out'}" in said
    assert [*tmp_path.iterdir()] == [tmp_path / "out"]
    config = BackboneConfig("timm_lm", weights=str(tmp_path / "out"))
    model = load_backbone(config)
    from safetensors.torch import load_file

    stored, words = load_file(tower / "model.safetensors"), AutoModelForCausalLM.from_pretrained(language)
    for name, weight in model.vision_tower.state_dict().items():
        assert torch.equal(weight, stored[name])
    for name, weight in model.language_model.state_dict().items():
        assert torch.equal(weight, words.state_dict()[name])
    assert model.language_model.lm_head.weight is model.get_input_embeddings().weight
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    of = load_processor(config)
    assert of.image_processor.processor.image_mean == [0.5] * 3
    tensors, (patch_map,) = of.images([noise((60, 90))])
    assert len(patch_map) == 9
    with torch.no_grad():
        assert_parity("features", model.eval().image_features(**tensors), stock.image_features(**tensors))


def test_the_type_of_the_language_model_and_another_projector(assemble: Assemble, tmp_path: Path) -> None:
    code, said = assemble(dtype="bfloat16", projector="local_resampler", seed=3)
    assert code == 0, said
    model = load_backbone(BackboneConfig("timm_lm", weights=str(tmp_path / "out"), dtype="auto"))
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_a_tower_that_keeps_the_aspect(assemble: Assemble, tmp_path: Path) -> None:
    torch.manual_seed(2)
    made = timm.create_model(NAFLEX["tower"], num_classes=0, **VIT)
    save_file(made.state_dict(), tmp_path / "naflex.safetensors")
    arguments = {"tower-arguments": json.dumps(VIT), "architecture": NAFLEX["tower"]}
    code, said = assemble(tower=tmp_path / "naflex.safetensors", **arguments)
    assert code == 0, said
    assert "at most 256 tokens of 16 pixels, in the image's own aspect" in said
    of = load_processor(BackboneConfig("timm_lm", weights=str(tmp_path / "out")))
    assert len(of.patch_map((640, 480))) > len(of.patch_map((900, 20))) > 1


def test_a_tokenizer_without_a_token_of_images_gets_one(assemble: Assemble, tmp_path: Path) -> None:
    # All rows of the embeddings are taken, so that there is one more.
    language = save_language(tmp_path / "language", image_token=False)
    code, said = assemble(language=language)
    assert code == 0, said
    assert "added to the tokenizer: <|image_pad|>" in said
    config = BackboneConfig("timm_lm", weights=str(tmp_path / "out"))
    of, model = load_processor(config), load_backbone(config)
    assert model.config.image_token_id == of.image_token_id < of.pointer_start
    assert of.pointer_start == len(model.get_input_embeddings().weight)


def vision_language(tmp_path: Path, tower: Path) -> dict[str, Any]:
    load_backbone(BackboneConfig("llava")).save_pretrained(tmp_path / "llava")
    return {"language": tmp_path / "llava"}


def pickled(tmp_path: Path, tower: Path) -> dict[str, Any]:
    torch.save({}, tmp_path / "tower.pth")
    return {"tower": tmp_path / "tower.pth", "architecture": SIGLIP}


def unknown_file(tmp_path: Path, tower: Path) -> dict[str, Any]:
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/tower.safetensors").write_bytes((tower / "model.safetensors").read_bytes())
    return {"tower": tmp_path / "alone/tower.safetensors"}


def cut_off(tmp_path: Path, tower: Path) -> dict[str, Any]:
    (tmp_path / "tower.safetensors").write_bytes((tower / "model.safetensors").read_bytes()[:-9])
    return {"tower": tmp_path / "tower.safetensors", "architecture": SIGLIP}


def no_chatml(tmp_path: Path, tower: Path) -> dict[str, Any]:
    folder = save_language(tmp_path / "language")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_start|>", "<|begin|>"))
    return {"language": folder}


def full(tmp_path: Path, tower: Path) -> dict[str, Any]:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    return {"out": tmp_path / "full"}


def hybrid(tmp_path: Path, tower: Path) -> dict[str, Any]:
    folder = save_language(tmp_path / "language")
    path = folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "layer_types": ["linear_attention", "full_attention"]}))
    return {"language": folder}


REFUSED: list[tuple[Callable[[Path, Path], dict[str, Any]], str]] = [
    (vision_language, "is a 'llava', not a causal language model"),
    (pickled, "no safetensors file; pickled weights, which could run code, are not read"),
    (unknown_file, "--architecture: None; nothing says what"),
    (cut_off, "is cut off"),
    (no_chatml, "its tokenizer has no '<|im_start|>'"),
    (full, "exists and is not empty"),
    (hybrid, "layers of the kind 'linear_attention'"),
    (lambda *_: {"tower-arguments": json.dumps({**ARGUMENTS, "depth": 3})}, "does not fit"),
    (lambda *_: {"tower-arguments": "img_size=3"}, "no JSON"),
    (
        lambda *_: {"tower": "vit_base_patch16_225"},
        "--tower: 'vit_base_patch16_225'; timm has no such",
    ),
    (lambda *_: {"architecture": SIGLIP, "tower": SIGLIP}, "--architecture: "),
    (lambda *_: {"projector": "pixel_shufle"}, "--projector: 'pixel_shufle'; did you mean 'pixel_shuffle'"),
    (lambda *_: {"projector": "average_pool", "projector-scale": 4}, "which no cells of 4 fill"),
    (lambda *_: {"family": "llava"}, "--family: 'llava'; give timm_lm"),
    (lambda *_: {"language": "/no/such/folder"}, "there is no such folder"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    make: Callable[[Path, Path], dict[str, Any]],
    message: str,
    assemble: Assemble,
    tower: Path,
    tmp_path: Path,
) -> None:
    changes = make(tmp_path, tower)
    before = sorted(tmp_path.rglob("*"))
    code, said = assemble(**changes)
    assert code != 0
    assert message in said
    assert len(said.strip().splitlines()) <= 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_language_model_of_another_architecture(assemble: Assemble, tmp_path: Path) -> None:
    sizes = text_sizes(tiny_tokenizer(), SIZES, "<|im_end|>")
    AutoModelForCausalLM.from_config(LlamaConfig(**sizes)).save_pretrained(tmp_path / "llama")
    tiny_tokenizer().save_pretrained(tmp_path / "llama")
    code, said = assemble(language=tmp_path / "llama", projector="linear")
    assert code == 0, said
    model = load_backbone(BackboneConfig("timm_lm", weights=str(tmp_path / "out")))
    assert type(model.language_model).__name__ == "LlamaForCausalLM"


@pytest.mark.slow
def test_the_folder_trains(assemble: Assemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert assemble()[0] == 0
    monkeypatch.chdir(tmp_path)
    small = [
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
        "--data.batch_size=2",
        "--data.val_batch_size=2",
        "--data.num_workers=0",
        "--data.source.options.examples=8",
        "--data.source.options.val_examples=2",
        "--run.report_examples=2",
        "--run.report_max_new_tokens=4",
        "--run.pictures=1",
        "--run.name=joined",
    ]
    weights = "--model.backbone.weights=out"
    assert main(["run", "tiny_timm", weights, "--model.backbone.freeze=[vision,language]", *small]) == 0
    assert (tmp_path / "runs/joined/model/model.safetensors").is_file()
