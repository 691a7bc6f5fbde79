"""Checkpoints of every family in the layouts that people have: opened, or refused with what to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.stock_folders import edit_json, stock_folder
from safetensors.torch import load_file, save_file
from torch import Tensor

from v1lit.backbones import list_backbones
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.load import check_weights, fit_weights, load_backbone
from v1lit.backbones.processor import load_processor
from v1lit.backbones.registry import get_backbone
from v1lit.backbones.weight_files import INDEX, SINGLE, WeightsUnavailable
from v1lit.backbones.weight_reading import WeightFiles
from v1lit.testing.models import noise

pytestmark = pytest.mark.dependencies

STOCK = [name for name in list_backbones() if hasattr(transformers, get_backbone(name).model_class)]
"""Families of which transformers itself writes checkpoints."""
NESTED = [
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", ""),
]
FLAT = [("model.language_model.", "model."), ("model.visual.", "visual.")]
OLDER = {"llava": NESTED, "internvl": NESTED, "qwen2_vl": FLAT, "qwen2_5_vl": FLAT}
"""How earlier versions of transformers named the weights; from the names that the model has now."""


@pytest.fixture(scope="module", params=STOCK)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family, and a whole checkpoint of it as its stock class writes it."""
    return request.param, stock_folder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def model(made: tuple[str, Path]) -> Any:
    """The stock model of the checkpoint."""
    name, folder = made
    return getattr(transformers, get_backbone(name).model_class).from_pretrained(folder)


def opened(name: str, folder: Path, **options: Any) -> Any:
    config = BackboneConfig(name, weights=str(folder), **options)
    check_weights(config)
    model = load_backbone(config)
    files = WeightFiles(folder)
    empty = load_backbone(config, empty=True)
    names = fit_weights(empty, files, str(folder))
    read = {weight: files.read(stored).clone() for weight, stored in names.renamed.items()}
    for conversion in names.conversions:
        read |= conversion.run(empty, lambda stored: files.read(stored).clone())
    for weight, value in read.items():
        assert torch.equal(value.to(model.dtype), model.state_dict()[weight]), weight
    return model


def same(model: Any, other: Mapping[str, Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == other.keys()
    for name, value in other.items():
        assert torch.equal(found[name], value.to(found[name].dtype)), name


def write_weights(folder: Path, source: Path, tensors: Mapping[str, Tensor]) -> Path:
    """The files of another checkpoint around these weights, in one file."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    own = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(own, folder / SINGLE, metadata={"format": "pt"})
    return folder


# ---------------------------------------------------------------- opened


def test_one_file_is_opened(made: tuple[str, Path], model: Any) -> None:
    same(opened(*made), model.state_dict())


def test_shards_with_an_index_are_opened(made: tuple[str, Path], model: Any, tmp_path: Path) -> None:
    name, folder = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / SINGLE).unlink()
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    model.save_pretrained(tmp_path, max_shard_size=size // 3)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    same(opened(name, tmp_path), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_opened_in_the_type_that_is_asked_for(
    made: tuple[str, Path], model: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    name, folder = made
    half = {key: value.to(dtype) for key, value in load_file(folder / SINGLE).items()}
    write_weights(tmp_path, folder, half)
    kind = str(dtype).removeprefix("torch.")
    edit_json(tmp_path / "config.json", lambda config: config.update(dtype=kind))
    wanted = {key: value.to(dtype) for key, value in model.state_dict().items()}
    for asked, expected in (("float32", torch.float32), ("auto", dtype)):
        found = opened(name, tmp_path, dtype=asked)
        assert {parameter.dtype for parameter in found.parameters()} == {expected}
        same(found, wanted)


def test_the_names_that_weights_have_now_are_opened(
    made: tuple[str, Path], model: Any, tmp_path: Path
) -> None:
    name, folder = made
    same(opened(name, write_weights(tmp_path, folder, model.state_dict())), model.state_dict())


def test_the_names_of_earlier_versions_are_opened(made: tuple[str, Path], model: Any, tmp_path: Path) -> None:
    name, folder = made
    older = {}
    for key, value in model.state_dict().items():
        pair = next(((now, then) for now, then in OLDER.get(name, []) if key.startswith(now)), ("", ""))
        older[pair[1] + key.removeprefix(pair[0])] = value
    assert name not in OLDER or not older.keys() & {k for k in model.state_dict() if k.startswith("model.l")}
    same(opened(name, write_weights(tmp_path, folder, older)), model.state_dict())


def test_a_tied_head_may_be_there_twice_or_once(made: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = made
    torch.manual_seed(1)
    tied = load_backbone(BackboneConfig(name, tiny={"tie_word_embeddings": True}))
    head = next(key for key, value in tied.named_parameters(remove_duplicate=False) if "lm_head" in key)
    weights = tied.state_dict()
    once = {key: value for key, value in weights.items() if key != head}
    for number, some in enumerate((weights, once)):
        place = write_weights(tmp_path / str(number), folder, some)
        tied.config.save_pretrained(place)
        found = opened(name, place)
        assert found.get_output_embeddings().weight is found.get_input_embeddings().weight
        same(found, weights)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_the_image_processor_is_read_from_either_file(
    made: tuple[str, Path], tmp_path: Path, file: str
) -> None:
    name, folder = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    content = settings if file.startswith("pre") else {"image_processor": settings}
    (tmp_path / file).write_text(json.dumps(content))
    expected, found = (load_processor(BackboneConfig(name, weights=str(at))) for at in (folder, tmp_path))
    image = [noise((120, 90))]
    for key, value in expected.images(image)[0].items():
        assert torch.equal(found.images(image)[0][key], value)


# ---------------------------------------------------------------- refused


def parts_of(name: str, tensors: Mapping[str, Tensor], model: Any, *parts: str) -> dict[str, Tensor]:
    """The weights of some parts, under the names that they have now."""
    paths = [f"{path}." for part in parts for path in get_backbone(name).parts[part]]
    others = [
        f"{path}." for part, own in get_backbone(name).parts.items() if part not in parts for path in own
    ]

    def owner(key: str, among: list[str]) -> int:
        return max((len(path) for path in among if key.startswith(path)), default=0)

    return {key: value for key, value in tensors.items() if owner(key, paths) > owner(key, others)}


@pytest.mark.parametrize(
    ("kept", "missing"),
    [(("language",), "vision"), (("vision",), "language"), (("vision", "language"), "projector")],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else value,
)
def test_a_part_that_is_missing_is_named(
    made: tuple[str, Path], model: Any, tmp_path: Path, kept: tuple[str, ...], missing: str
) -> None:
    name, folder = made
    if not parts_of(name, model.state_dict(), model, missing):
        return
    write_weights(tmp_path, folder, parts_of(name, model.state_dict(), model, *kept))
    for empty in (False, True):
        with pytest.raises(ValueError, match=f"lacks .*{missing}.*altogether") as error:
            load_backbone(BackboneConfig(name, weights=str(tmp_path)), empty=empty)
        assert get_backbone(name).hub_id in str(error.value)
        assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("config", "repository"),
    [
        ({"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}, "llava-hf/llava-1.5-7b-hf"),
        (
            {
                "architectures": ["LlavaLlamaForCausalLM"],
                "image_aspect_ratio": "anyres",
                "mm_vision_tower": "x",
            },
            "llava-hf/llava-v1.6-vicuna-7b-hf",
        ),
        (
            {"model_type": "llava_mistral", "architectures": ["LlavaMistralForCausalLM"]},
            "llava-hf/llava-v1.6-mistral-7b-hf",
        ),
        (
            {"model_type": "llava_qwen", "architectures": ["LlavaQwenForCausalLM"], "vocab_size": 9},
            "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        ),
        ({"model_type": "internvl_chat", "auto_map": {"a": "b"}}, "OpenGVLab/InternVL3-1B-hf"),
        ({"model_type": "qwen3_vl_moe"}, "Qwen/Qwen3-VL-8B-Instruct"),
    ],
)
@pytest.mark.parametrize("name", STOCK)
def test_layouts_of_others_are_named_with_the_repository_to_take(
    name: str, config: dict[str, Any], repository: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=repository) as error:
        check_weights(BackboneConfig(name, weights=str(tmp_path)))
    assert not isinstance(error.value, WeightsUnavailable)


@pytest.mark.parametrize("kind", ["text_config", "vision_config"])
def test_a_model_of_one_kind_alone_is_named(made: tuple[str, Path], tmp_path: Path, kind: str) -> None:
    name, folder = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    part = json.loads((folder / "config.json").read_text())[kind]
    (tmp_path / "config.json").write_text(json.dumps(part))
    alone = "a language model alone" if kind == "text_config" else "a vision tower alone"
    own = "the language model of a Qwen3.5 alone|without a vision tower"  # families that know their halves
    with pytest.raises(ValueError, match=f"is ({alone}|{own})|{own}") as error:
        check_weights(BackboneConfig(name, weights=str(tmp_path)))
    assert get_backbone(name).hub_id in str(error.value)


def command_in(text: str) -> str:
    """The Python code that a message says to run."""
    found = re.search(r'python -c "(.*)"', text)
    assert found is not None, text
    return found[1]


def pickled(name: str) -> Callable[[Path, dict[str, Tensor]], object]:
    return lambda folder, tensors: torch.save(tensors, folder / name)


def pickled_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    names = sorted(tensors)
    files = {name: f"pytorch_model-{1 + number % 2:05}-of-00002.bin" for number, name in enumerate(names)}
    for file in sorted(set(files.values())):
        torch.save({name: tensors[name] for name in names if files[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "write",
    [pickled("pytorch_model.bin"), pickled("model.pt"), pickled_shards],
    ids=["bin", "pt", "shards"],
)
def test_what_is_pickled_is_refused_with_the_command_that_converts_it(
    made: tuple[str, Path], model: Any, tmp_path: Path, write: Any
) -> None:
    """The command is run, and the folder then opens."""
    name, folder = made
    place = tmp_path / "a folder"
    shutil.copytree(folder, place)
    (place / SINGLE).unlink()
    write(place, load_file(folder / SINGLE))
    with pytest.raises(WeightsUnavailable, match="pickled weights") as error:
        check_weights(BackboneConfig(name, weights=str(place)))
    assert len(str(error.value).splitlines()) == 2
    exec(command_in(str(error.value)), {})
    same(opened(name, place), model.state_dict())


QUANTIZED = {
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
FOREIGN: dict[str, Any] = {
    "own code": lambda config: config.update(auto_map={"AutoModel": "modeling.Model"}),
    "no JSON": None,
    "broken": lambda config: config.update(text_config=3),
    **{
        kind: lambda config, how=how: config.update(quantization_config=how)
        for kind, how in QUANTIZED.items()
    },
}
SAID = {"own code": "not the transformers class", "no JSON": "is not valid JSON", "broken": "config.json"}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_config_that_cannot_be_used_is_refused(made: tuple[str, Path], tmp_path: Path, kind: str) -> None:
    name, folder = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    if FOREIGN[kind] is None:
        (tmp_path / "config.json").write_text("{")
    else:
        edit_json(tmp_path / "config.json", FOREIGN[kind])
    with pytest.raises(ValueError, match=SAID.get(kind, f"is quantized .*{kind}")) as error:
        check_weights(BackboneConfig(name, weights=str(tmp_path)))
    assert str(tmp_path) in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


def test_a_damaged_folder_is_refused_before_anything_is_read(
    made: tuple[str, Path], model: Any, tmp_path: Path
) -> None:
    name, folder = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / SINGLE).unlink()
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    model.save_pretrained(tmp_path, max_shard_size=size // 3)
    config, shard = (
        BackboneConfig(name, weights=str(tmp_path)),
        sorted(tmp_path.glob("model-*.safetensors"))[1],
    )
    check_weights(config)
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsUnavailable, match=rf"{shard.name} is cut off: .*\n.*hf download"):
        check_weights(config)
    shard.unlink()
    with pytest.raises(WeightsUnavailable, match=rf"lacks 1 of the .* {INDEX} names: {shard.name}"):
        check_weights(config)
