"""Models from a config: tiny ones made on the spot, checkpoints read with every weight accounted for."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v1lit.backbones.classes import named_class
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.contract import Backbone
from v1lit.backbones.empty import empty_model, parameters_to_meta
from v1lit.backbones.folder import check_stock_folder, check_weight_files, merge_command, refuse_quantized
from v1lit.backbones.foreign import explain_absent, explain_half, explain_original_llava
from v1lit.backbones.hub import hub_errors, local_folder
from v1lit.backbones.registry import BUILTIN, get_backbone, list_backbones
from v1lit.backbones.tiny import tiny_tokenizer
from v1lit.backbones.weight_files import WeightsUnavailable
from v1lit.backbones.weight_names import WeightNames, match_weights
from v1lit.backbones.weight_reading import WeightFiles
from v1lit.errors import OptionError, explain_unknown, first_of, name_allowed, named, one_line

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

SHOWN = 5


def check_backbone_config(config: BackboneConfig) -> Backbone:
    """The backbone of a config, once all that needs no file has been checked. Raises ValueError."""
    if config.name not in (names := list_backbones()):
        raise OptionError("name", config.name, name_allowed(config.name, names), "model.backbone")
    backbone = get_backbone(config.name)
    with named("model.backbone.image"):
        backbone.check_image_options(config.image)
        backbone.complete(config.image)
    if config.weights == "tiny":
        with named("model.backbone.tiny"):
            backbone.check_sizes(config.tiny)
    return backbone


def load_backbone(config: BackboneConfig, empty: bool = False) -> PreTrainedModel:
    """The transformers model of a config, on the CPU.

    The tiny version is initialised at random; seed torch before for a reproducible one. A checkpoint must
    hold every weight of the model and no other. With `empty`, parameters are on `meta` and no weight is read:
    `v1lit.parallel.fill` reads them where they are needed.

    Raises ValueError for a user's mistake, a checkpoint of another family, missing or unexpected weights,
    WeightsUnavailable if the checkpoint is out of reach or damaged.
    """
    backbone = check_backbone_config(config)
    cls = named_class(backbone.model_class)
    if config.weights == "tiny":
        model = _new_model(cls, backbone, config)
        if empty:
            parameters_to_meta(model)
    else:
        check_weights(config)
        with hub_errors(config.weights):
            model = (_empty if empty else _loaded)(cls, config, backbone)
        refuse_untied(model, config.weights)
    return backbone.prepare(model)


def _loaded(cls: Any, config: BackboneConfig, backbone: Backbone) -> PreTrainedModel:
    import torch

    from v1lit.backbones.attention import stock_attention

    # Of tied embeddings under the head's name, transformers first draws random ones.
    with torch.random.fork_rng(devices=[]):
        model, report = cls.from_pretrained(
            config.weights,
            dtype=config.dtype,
            attn_implementation=stock_attention(config.attention, get_backbone(config.name).whole_images),
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
        )
    _refuse_absent(model, backbone, report, config.weights)
    refuse_incomplete(report, config.weights)
    loaded: PreTrainedModel = model
    return loaded


def _empty(cls: Any, config: BackboneConfig, backbone: Backbone) -> PreTrainedModel:
    from v1lit.backbones.attention import stock_attention

    folder = local_folder(config.weights)
    attention = stock_attention(config.attention, get_backbone(config.name).whole_images)
    model = empty_model(cls, folder, config.dtype, attention)
    model.config.name_or_path = config.weights
    names = fit_weights(model, WeightFiles(folder), config.weights, backbone)
    vars(model)["_weight_conversions"] = names.transforms
    return model


def fit_weights(
    model: PreTrainedModel, files: WeightFiles, source: str, backbone: Backbone | None = None
) -> WeightNames:
    """Where the weights of a stock model, which may be on `meta`, are in the files of a checkpoint.

    backbone: its family, by which parts that are missing are named.

    Raises ValueError as `load_backbone`, with the same words, for files that do not fit the model.
    """
    names = match_weights(model, files.tensors)
    if backbone is not None:
        _refuse_absent(model, backbone, names.report, source)
    refuse_incomplete(names.report, source)
    for one, other in names.doubled:
        stored = names.renamed[one], names.renamed[other]
        if not files.equal(*stored, model.get_parameter(one).dtype):
            raise _untied(source)
    return names


def check_weights(config: BackboneConfig) -> None:
    """Look at a checkpoint's config and at the headers of its weight files, and load none of them.

    Raises what `load_backbone` raises for a checkpoint of another kind, and for files that are missing, cut
    off or quantized. Those of a hub id are looked at when they have been fetched.
    """
    backbone = get_backbone(config.name)
    model_config = checkpoint_config(backbone, config.weights)
    _refuse_impossible(backbone, model_config, config.weights)
    with hub_errors(config.weights):
        if Path(config.weights).is_dir():
            check_weight_files(Path(config.weights), model_config.get_text_config().vocab_size)


def _refuse_impossible(backbone: Backbone, config: PreTrainedConfig, weights: str) -> None:
    """Make the model without any weights: transformers finds some mistakes of a config only there."""
    import torch
    from transformers.initialization import no_init_weights

    try:
        with torch.device("meta"), no_init_weights():
            named_class(backbone.model_class)(copy.deepcopy(config))
    except Exception as error:  # a KeyError of a table of names, a TypeError of a layer
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"{weights}: no model can be made from its config.json: {reason}") from error


def refuse_untied(model: PreTrainedModel, source: str) -> None:
    """Raise ValueError if the config ties the two vocabulary tables, but the files hold two."""
    text = model.config.get_text_config()
    tied = getattr(model.config, "tie_word_embeddings", False) or getattr(text, "tie_word_embeddings", False)
    head: Any = model.get_output_embeddings()
    if tied and head is not None and head.weight is not model.get_input_embeddings().weight:
        raise _untied(source)


def _untied(source: str) -> ValueError:
    return ValueError(
        f"{source}: tie_word_embeddings is true, but lm_head and embed_tokens differ in the weights\n"
        "set tie_word_embeddings to false in config.json to keep both"
    )


def _new_model(cls: Any, backbone: Backbone, config: BackboneConfig) -> PreTrainedModel:
    import torch

    from v1lit.backbones.attention import stock_attention

    model_config = backbone.tiny_config(
        tiny_tokenizer(backbone.chat.stop, backbone.chat.single), **config.tiny
    )
    dtype = torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)
    # Drawn in float32 whatever the type, so that one seed means one model.
    attention = stock_attention(config.attention, backbone.whole_images)
    drawn = cls._from_config(model_config, attn_implementation=attention)
    for weight in backbone.matrices(drawn):
        torch.nn.init.normal_(weight, std=model_config.get_text_config().initializer_range)
    model: PreTrainedModel = drawn.to(dtype)
    model.config.dtype = dtype
    return model


def refuse_incomplete(report: Mapping[str, Iterable[Any]], source: str) -> None:
    """Raise ValueError naming weights that are missing, unexpected or of another shape."""
    problems = [
        _listed("missing", report.get("missing_keys", ())),
        _listed("unexpected", report.get("unexpected_keys", ())),
        _listed("of another shape", [_mismatch(entry) for entry in report.get("mismatched_keys", ())]),
        _listed("unreadable", report.get("error_msgs", ())),
    ]
    found = [problem for problem in problems if problem]
    if found:
        raise ValueError(f"{source} does not fit the model; weights {'; '.join(found)}")


def _refuse_absent(
    model: PreTrainedModel, backbone: Backbone, report: Mapping[str, Iterable[Any]], source: str
) -> None:
    """Raise ValueError where a whole part of the model is missing."""
    parts = {part: set(part_parameters(model, backbone, part)) for part in backbone.parts}
    missing = set(report.get("missing_keys", ()))
    if (explained := explain_absent(parts, missing, source, backbone.hub_id)) is not None:
        raise ValueError(explained)


def _listed(what: str, names: Iterable[Any]) -> str:
    ordered = sorted(map(str, names))
    return f"{what} ({len(ordered)}): {first_of(ordered, SHOWN)}" if ordered else ""


def _mismatch(entry: Any) -> str:
    if isinstance(entry, str):
        return entry
    name, given, wanted = entry
    return f"{name} {list(given)} instead of {list(wanted)}"


def freeze(model: nn.Module, backbone: Backbone, parts: Iterable[str]) -> int:
    """Switch off gradients of parts of a transformers model; returns how many weights were frozen.

    Raises ValueError for a part that the backbone does not have.
    """
    frozen = 0
    for part in parts:
        if part not in backbone.parts:
            raise ValueError(explain_unknown(f"part of {backbone.name}", part, backbone.parts))
        for parameter in part_parameters(model, backbone, part).values():
            frozen += parameter.numel() * parameter.requires_grad
            parameter.requires_grad_(False)
    return frozen


def part_parameters(model: nn.Module, backbone: Backbone, part: str) -> dict[str, nn.Parameter]:
    """The parameters of one part by name. Of two paths, one inside the other, the inner decides."""
    owner = {path: name for name, paths in backbone.parts.items() for path in paths}

    def part_of(parameter: str) -> str | None:
        inside = [path for path in owner if f"{parameter}.".startswith(f"{path}.")]
        return owner[max(inside, key=len)] if inside else None

    return {name: parameter for name, parameter in model.named_parameters() if part_of(name) == part}


def checkpoint_config(backbone: Backbone, weights: str) -> PreTrainedConfig:
    """The config of a checkpoint, after checking that it is of the backbone's family. Loads no weights.

    Raises ValueError for another family, quantized weights, an adapter and settings that cannot be read;
    WeightsUnavailable if the checkpoint is out of reach or damaged.
    """
    import transformers
    from transformers.utils.peft_utils import find_adapter_config_file

    with hub_errors(weights):
        if Path(weights).exists():
            content = check_stock_folder(Path(weights))
        else:
            if find_adapter_config_file(weights) is not None:
                raise ValueError(
                    f"{weights} has an adapter beside or instead of its weights, which would be left out\n"
                    f"give NEW, with tokenizer and processor files, after: {merge_command('BASE', weights)}"
                )
            content, _ = transformers.PreTrainedConfig.get_config_dict(weights)
    _refuse_other_family(backbone, content, weights)
    refuse_quantized(content, weights)
    backbone.check_checkpoint(content, weights)
    config_class: Any = named_class(backbone.model_class).config_class
    try:
        config: PreTrainedConfig = config_class.from_dict(content)
    except Exception as error:  # every field has its own checks, with errors of their own
        raise ValueError(f"{weights}: config.json cannot be read: {one_line(error)}") from error
    return config


def _refuse_other_family(backbone: Backbone, content: Mapping[str, Any], weights: str) -> None:
    model_type = content.get("model_type")
    if not content:
        raise WeightsUnavailable(f"{weights} has no config.json")
    for part in ("text_config", "vision_config"):
        if not isinstance(content.get(part) or {}, Mapping):
            raise ValueError(f"{weights}: config.json cannot be read: {part} is {content[part]!r}")
    if (explained := explain_original_llava(content, weights)) is not None:
        raise ValueError(explained)
    foreign = backbone.model_class not in (content.get("architectures") or [backbone.model_class])
    if model_type != backbone.model_type or foreign:
        for family in (backbone, *map(get_backbone, BUILTIN)):
            if (explained := family.explain_foreign(content, weights)) is not None:
                raise ValueError(explained)
    if model_type != backbone.model_type:
        if (explained := explain_half(content, weights, backbone.hub_id)) is not None:
            raise ValueError(explained)
        other = next((name for name in BUILTIN if get_backbone(name).model_type == model_type), None)
        families = ", ".join(f"{name} ({get_backbone(name).hub_id})" for name in sorted(BUILTIN))
        advice = (
            f"use --model.backbone.name={other}" if other else f"no backbone of v1lit reads it: {families}"
        )
        raise ValueError(
            f"{weights} has model_type {model_type!r}, "
            f"but {backbone.name} needs {backbone.model_type!r}: {advice}"
        )
