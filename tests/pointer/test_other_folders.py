"""Folders of another kind than a reader's are refused before a weight is read, and no pickle is opened."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.stock_folders import edit_json, stock_folder
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

import v1lit
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import load_processor
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.published import save_published
from v1lit.testing.models import build

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds") / "published"
    save_published(build("qwen2_5_vl", PointerConfig(z_weight=0.0)), folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds") / "exported"
    build("qwen2_5_vl").save_pretrained(folder)
    load_processor(BackboneConfig()).save_pretrained(folder)
    return folder


def test_each_reader_opens_its_own_kind_and_names_the_reader_of_another(
    published: Path, exported: Path, tmp_path: Path
) -> None:
    stock, run = stock_folder(tmp_path / "stock"), tmp_path / "run"
    shutil.copytree(exported, run / "model")
    v1lit.load(exported)
    PointAndCopyModel.from_published(published)
    for read in (v1lit.load, PointAndCopyModel.from_pretrained):
        with pytest.raises(ValueError, match=r"published layout.*\n.*from_published"):
            read(published)
        with pytest.raises(ValueError, match=r"qwen2_5_vl checkpoint without a pointer head.*\ntrain it"):
            read(stock)
        with pytest.raises(ValueError, match=r"no config\.json\ngive its folder .*run/model$"):
            read(run)
    for folder in (exported, stock):
        with pytest.raises(ValueError, match=r"published layout has 'v1'\nv1lit\.load opens"):
            PointAndCopyModel.from_published(folder)


def test_what_an_export_lacks_is_named(exported: Path, tmp_path: Path) -> None:
    for name, message in (
        (WEIGHTS, "no weights: model.safetensors is missing"),
        ("tokenizer.json", "has no tokenizer"),
        ("preprocessor_config.json", "has no image processor"),
        ("v1lit_processor.json", "has no v1lit_processor.json"),
    ):
        folder = tmp_path / name
        shutil.copytree(exported, folder)
        (folder / name).unlink()
        with pytest.raises(ValueError, match=message):
            v1lit.load(folder)


def test_model_and_processor_agree_on_the_image_token(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    edit_json(tmp_path / "config.json", lambda content: content["backbone_config"].update(image_token_id=9))
    with pytest.raises(ValueError, match="images are token 9 to the model, but 6 to the processor"):
        v1lit.load(tmp_path)


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["published", "exported"])
def test_pickled_weights_are_never_opened(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(request.getfixturevalue(kind), folder)
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    read = PointAndCopyModel.from_published if kind == "published" else PointAndCopyModel.from_pretrained
    with pytest.raises(ValueError, match="has pickled weights only"):
        read(folder)
    assert not (tmp_path / "sprung").exists()


def test_pickled_weights_of_the_hub_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def remember(cls: type, folder: str, **options: object) -> tuple[None, dict[str, object]]:
        asked.update(options)
        return None, {}

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", classmethod(remember))
    PointAndCopyModel.from_pretrained("some/repository", use_safetensors=False)
    assert asked["use_safetensors"] is True


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def adapter_beside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def setting(**values: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda content: content.update(values))


def no_pointer_start(folder: Path) -> None:
    edit_json(folder / "config.json", lambda content: content.pop("copy_token_start"))


def no_embedding(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / WEIGHTS)


def other_shape(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "lm_head.weight": torch.zeros(3, 3)}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "is cut off"),
        (adapter_beside, r"has an adapter \(adapter_config.json\)"),
        (setting(quantization_config={"quant_method": "awq"}), "is quantized"),
        (setting(do_copy=False), "do_copy False is not supported, only True"),
        (setting(use_cfg=True), "use_cfg True is not supported, only False"),
        (setting(copy_extraction_layer=3), "copy_extraction_layer 3 is not supported, only -1"),
        (no_pointer_start, "lacks copy_token_start"),
        (no_embedding, "missing model.embed_tokens.weight"),
        (other_shape, r"lm_head.weight is \[3, 3\] instead of \[1280, 64\]"),
    ],
)
def test_a_published_checkpoint_that_cannot_be_read_as_it_is_meant_is_refused(
    published: Path, change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        PointAndCopyModel.from_published(tmp_path)


def test_the_settings_of_generation_come_along(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / "published")
    stock = stock_folder(tmp_path / "stock")
    for folder in (tmp_path / "published", stock):
        GenerationConfig(repetition_penalty=1.05, suppress_tokens=[3]).save_pretrained(folder)
    models = (
        PointAndCopyModel.from_published(tmp_path / "published"),
        PointAndCopyModel.build(BackboneConfig(weights=str(stock))),
    )
    for model in models:
        assert model.generation_config.repetition_penalty == 1.05
        assert model.generation_config.suppress_tokens == [3]
