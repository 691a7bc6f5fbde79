"""The checkpoint layout of the published v1-7B, read and written.

It is Qwen2.5-VL's layout of its time (`model.*` for the decoder, `visual.*` for the tower) with the pointer
heads and the gate beside it, and one flat config that names the options in its own words.
Source: jun297/v1, v1/modeling_v1.py, lines 44-69 for weights, v1/configuration_v1.py for options.
Tokenizer and image processor are those of `v1lit.pointer.published_processor`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.initialization import no_init_weights

from v1lit.backbones.folder import refuse_adapter, refuse_quantized
from v1lit.backbones.load import refuse_untied
from v1lit.backbones.processor import Processor
from v1lit.backbones.weight_files import read_headers, read_json, weight_files
from v1lit.files import aside, write_atomically
from v1lit.paths import expand_path
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model_config import PointAndCopyConfig
from v1lit.pointer.published_processor import save_published_processor
from v1lit.revisit.config import POINT_AND_COPY

Model = TypeVar("Model", bound=PreTrainedModel)

_PREFIXES = (
    ("model.", "backbone.model.language_model."),
    ("visual.", "backbone.model.visual."),
    ("lm_head.", "backbone.lm_head."),
    ("_copy_q_head.", "pointer_head.query."),
    ("_copy_k_head.", "pointer_head.key."),
    ("_copy_head.", "pointer_head.query."),
    ("gate.", "pointer_head.gate."),
)
"""Published prefix and ours; the first that fits counts."""
_NEEDED = ("hidden_size", "vocab_size", "vision_config", "copy_token_start")
_PINNED = {"copy_extraction_layer": -1, "do_copy": True, "use_cfg": False, "tf_legacy_loss": False}
"""Options of the published implementation of which v1lit knows one value only."""
_OPTIONS = (
    *("copy_extraction_layer", "copy_hidden_size", "copy_scaler", "copy_token_num", "copy_token_start"),
    *("do_copy", "label_smoothing", "normalize_copy_states", "region_token_id", "separate_copy_loss"),
    *("tie_copy_heads", "tf_legacy_loss", "use_cfg", "use_embeddings_as_keys", "use_gate", "z_loss_top_k"),
    *("z_loss_weight", "architectures", "model_type", "transformers_version", "_attn_implementation_autoset"),
    *("_name_or_path", "dtype", "torch_dtype"),
)
"""Keys of the published config that are none of the backbone's."""
_NOT_FLAT = ("text_config", "dtype")
"""Keys of a backbone's config that are not written; the type is called `torch_dtype`."""
_REGION_TOKEN = 151_662
"""`<|fim_pad|>` of Qwen2.5: what the published code puts in the place of a pointer to look up an embedding,
which the copy then overwrites. All that counts is that the table has such a row, and that it is no image.
"""
_DECODING = {"suppress": "none", "end": "text"}
"""Options of point_and_copy that change what a model writes, with the value that the layout stands for."""


def load_published(
    folder: str | Path,
    build: Callable[[PointAndCopyConfig, PreTrainedModel], Model],
    dtype: torch.dtype | None = None,
    attention: str = "sdpa",
) -> Model:
    """Open a checkpoint folder in the published layout with `build(config, backbone)`, which makes the model.

    Weights keep their type unless `dtype` is given. Raises ValueError for a folder of another kind, for files
    that are missing or damaged, for options that v1lit cannot express and for weights that are missing,
    unexpected or of another shape, by name.
    """
    folder = Path(expand_path(folder))
    config = read_published_config(folder)
    read_headers(folder)
    state: dict[str, Tensor] = {}
    for file in weight_files(folder):
        state |= {_our_name(name): tensor for name, tensor in load_file(file).items()}
    if dtype is not None:
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
    embedding = state.get("backbone.model.language_model.embed_tokens.weight")
    if embedding is None:
        raise ValueError(f"{folder} does not fit the published layout: missing model.embed_tokens.weight")
    if config.backbone_config.tie_word_embeddings:
        state.setdefault("backbone.lm_head.weight", embedding)
    with no_init_weights():
        config.backbone_config._attn_implementation = attention
        backbone = Qwen2_5_VLForConditionalGeneration(config.backbone_config)
        model = build(config, backbone)
    _load_weights(model, state, folder)
    refuse_untied(backbone, str(folder))
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.eval()
    return model


def read_published_config(folder: Path) -> PointAndCopyConfig:
    """The configuration of a folder in the published layout.

    Raises ValueError for a folder of another kind and for options that v1lit cannot express.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no config.json; give the folder of a checkpoint in the published v1 layout"
        )
    config = _config(read_json(path), path)
    refuse_adapter(folder)
    return config


def save_published(model: PreTrainedModel, folder: str | Path, processor: Processor | None = None) -> None:
    """Write a `PointAndCopyModel` in the published layout; the folder appears whole or not at all.

    With a `processor`, tokenizer and image processor are written beside it. Raises ValueError for a folder
    that is there already, and what `refuse_unpublishable` raises.
    """
    folder, config = Path(expand_path(folder)), model.config
    assert isinstance(config, PointAndCopyConfig)
    refuse_unpublishable(config)
    if folder.exists():
        raise ValueError(f"{folder} exists already; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with aside(folder) as unfinished:
        unfinished.mkdir()
        tied = config.pointer_options.tie_heads
        tensors = {published_name(name, tied): value for name, value in model.state_dict().items()}
        if config.backbone_config.tie_word_embeddings:
            tensors.pop("lm_head.weight")
        weights = {name: value.contiguous() for name, value in tensors.items()}
        save_file(weights, unfinished / "model.safetensors", metadata={"format": "pt"})
        write_published_config(unfinished, model)
        if processor is not None:
            save_published_processor(processor, unfinished)


def write_published_config(folder: Path, model: PreTrainedModel) -> None:
    """Write `config.json` and `generation_config.json` of the published layout."""
    assert isinstance(model.config, PointAndCopyConfig)
    content = published_config(model.config, str(model.dtype))
    write_atomically(folder / "config.json", json.dumps(content, indent=2) + "\n")
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def refuse_unpublishable(config: PointAndCopyConfig) -> None:
    """Raise ValueError for a model that the published implementation would run as another one, by name."""
    if config.family != "qwen2_5_vl":
        raise ValueError(
            f"the published layout holds Qwen2.5-VL only; this model's backbone is {config.family}"
        )
    revisit, why = config.revisit_options, None
    if revisit.name != POINT_AND_COPY.name:
        why = f"holds models that point and copy; revisit.name is {revisit.name}"
    elif revisit.control != "none":
        why = f"copies what was pointed at; revisit.control is {revisit.control}"
    for option, only in _DECODING.items():
        if why is None and (given := revisit.options.get(option, only)) != only:
            what = "the end of a run as a choice of the pointer head" if option == "end" else "such a rule"
            why = f"has no place for {what} (revisit.options.{option}: {given})"
    if why is not None:
        raise ValueError(f"the published layout {why}; take the layout of v1lit itself")


def left_out_of_published(config: PointAndCopyConfig) -> dict[str, Any]:
    """Options of training that the published layout has no place for, with their values.

    What a model says does not depend on them.
    """
    options, given = config.pointer_options, config.revisit_options.options
    told = {f"revisit.options.{name}": value for name, value in given.items() if name not in _DECODING}
    if options.first_pointer_weight != PointerConfig.first_pointer_weight:
        told["pointer.first_pointer_weight"] = options.first_pointer_weight
    return told


def _config(published: dict[str, Any], path: Path) -> PointAndCopyConfig:
    if published.get("model_type") != "v1":
        raise ValueError(
            f"{path}: model_type is {published.get('model_type')!r}; the published layout has 'v1'\n"
            f"v1lit.load opens a folder that v1lit exported, --model.backbone.weights a stock checkpoint"
        )
    refuse_quantized(published, str(path.parent))
    absent = [key for key in _NEEDED if key not in published]
    if absent:
        raise ValueError(f"{path} lacks {', '.join(absent)}, which the published layout has")
    for key, only in _PINNED.items():
        if published.get(key, only) != only:
            raise ValueError(f"{path}: {key} {published[key]!r} is not supported, only {only!r}")
    hidden, width = published["hidden_size"], published.get("copy_hidden_size") or published["hidden_size"]
    separate = bool(published.get("separate_copy_loss"))
    z_weight = 0.0 if separate else float(published.get("z_loss_weight") or 0.0)
    pointer = {
        "tie_heads": bool(published.get("tie_copy_heads")),
        "width": None if width == hidden else width,
        "key_source": "embedding" if published.get("use_embeddings_as_keys") else "hidden",
        "normalize": bool(published.get("normalize_copy_states")),
        "gate": bool(published.get("use_gate")),
        "loss": "separate" if separate else "joint",
        "z_weight": z_weight,
        "z_top_k": published.get("z_loss_top_k") if z_weight > 0 else None,
        "label_smoothing": _smoothing(published.get("label_smoothing"), path),
    }
    own = {key: value for key, value in published.items() if key not in _OPTIONS}
    if isinstance(rope := own.get("rope_scaling"), dict) and "rope_type" in rope:
        own["rope_scaling"] = {key: value for key, value in rope.items() if key != "type"}  # its older name
    backbone = Qwen2_5_VLConfig(**own)
    return PointAndCopyConfig(
        backbone, family="qwen2_5_vl", pointer_start=published["copy_token_start"], pointer=pointer
    )


def _smoothing(published: Any, path: Path) -> float:
    """The published code hands the value on to `CrossEntropyLoss`, where true would be a share of 1."""
    if published is True:
        raise ValueError(f"{path}: label_smoothing is true; it is a share, a number from 0 to below 1")
    return float(published or 0.0)


def _load_weights(model: PreTrainedModel, state: dict[str, Tensor], folder: Path) -> None:
    """Raises ValueError for weights that are missing, unexpected or of another shape."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = [name for name, tensor in state.items() if tuple(tensor.shape) != wanted.get(name, tensor.shape)]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{folder} does not fit its config.json: {name} is {list(state[name].shape)} instead of "
            f"{list(wanted[name])} ({len(wrong)} such weights)"
        )
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if missing or unexpected:
        raise ValueError(
            f"{folder} does not fit the published layout: missing {sorted(missing)[:5]}, "
            f"unexpected {sorted(unexpected)[:5]} ({len(missing)} and {len(unexpected)} in all)"
        )
    model.tie_weights()


def published_config(config: PointAndCopyConfig, dtype: str) -> dict[str, Any]:
    """The flat config of a model with weights of this type, such as `torch.float32`."""
    assert config.pointer_start is not None
    inner, options = config.backbone_config, config.pointer_options
    text = inner.text_config.to_dict()
    rope = dict(text.pop("rope_parameters"))
    theta = rope.pop("rope_theta")
    text.pop("layer_types", None)
    rest = {k: v for k, v in inner.to_dict().items() if k not in _NOT_FLAT}
    rest["vision_config"].pop("dtype", None)
    return {
        **{k: v for k, v in text.items() if k not in _NOT_FLAT},
        **rest,
        "model_type": "v1",
        "architectures": ["V1ForConditionalGeneration"],
        "rope_theta": theta,
        "rope_scaling": {**rope, "type": rope["rope_type"]},
        "torch_dtype": dtype.removeprefix("torch."),
        "do_copy": True,
        "copy_extraction_layer": -1,
        "copy_hidden_size": options.width or text["hidden_size"],
        "copy_token_start": config.pointer_start,
        "region_token_id": min(_REGION_TOKEN, config.pointer_start - 1),
        "tie_copy_heads": options.tie_heads,
        "use_embeddings_as_keys": options.key_source == "embedding",
        "normalize_copy_states": options.normalize,
        "use_gate": options.gate,
        "separate_copy_loss": options.loss == "separate",
        "z_loss_weight": options.z_weight,
        "z_loss_top_k": options.z_top_k,
        "label_smoothing": options.label_smoothing or False,
    }


def _our_name(name: str) -> str:
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def published_name(name: str, tied: bool) -> str:
    """What the layout calls a weight of ours; `tied`: whether the pointer has one head for both."""
    for theirs, ours in _PREFIXES:
        if name.startswith(ours) and not (tied and theirs == "_copy_q_head."):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"the published layout has no place for {name}")
