"""The model of a recipe without its weights: which config, and the modules on the meta device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from v1lit.backbones.adapters.config import NONE, AdapterConfig
from v1lit.backbones.adapters.inject import inject
from v1lit.backbones.adapters.layers import refuse_frozen
from v1lit.backbones.classes import named_class
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.contract import Backbone
from v1lit.backbones.efficiency import enable_checkpointing, part_layers
from v1lit.backbones.load import checkpoint_config, freeze
from v1lit.backbones.registry import get_backbone
from v1lit.backbones.tiny import tiny_tokenizer
from v1lit.backbones.weight_files import WeightsUnavailable
from v1lit.parallel.tensor_parallel import COLUMNS, layer_plan, refuse_uneven
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.model_config import PointAndCopyConfig
from v1lit.revisit.config import RevisitConfig
from v1lit.training.freezing import freeze_matching

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def published_sizes() -> dict[str, dict[str, Any]]:
    """Configs of published checkpoints by hub id, as far as they decide what is computed.

    Written down without the hub at hand, as config.json of each repository is known. Those of Qwen3.5,
    Qwen3-VL 8B and 32B, Gemma 3, LLaVA-1.5 7B, LLaVA-1.6 and InternVL3 38B were compared with public copies
    of the files; the others were not. `path` of `model_config` takes the real file instead.
    """
    text = files("v1lit.plan").joinpath("published_configs.json").read_text(encoding="utf-8")
    sizes: dict[str, dict[str, Any]] = json.loads(text)
    return sizes


def model_config(backbone: BackboneConfig, path: str | None = None) -> PreTrainedConfig:
    """The transformers config of a recipe's backbone.

    From `path` (a `config.json` or its folder) if given; else that of the weights: of a tiny version, of a
    folder, from the table of published sizes, or from the hub. Raises ValueError for a config of another
    family, WeightsUnavailable where none is at hand.
    """
    family = get_backbone(backbone.name)
    if path is not None:
        folder = Path(path)
        folder = folder.parent if folder.is_file() else folder
        return checkpoint_config(family, str(folder))
    if backbone.weights == "tiny":
        return family.tiny_config(tiny_tokenizer(family.chat.stop, family.chat.single), **backbone.tiny)
    known = published_sizes().get(backbone.weights)
    if known is not None and known["model_type"] == family.model_type and not Path(backbone.weights).exists():
        return _of_family(family, known)
    try:
        return checkpoint_config(family, backbone.weights)
    except WeightsUnavailable as error:
        reason = str(error).splitlines()[0]
        raise WeightsUnavailable(f"{reason}\ngive its config: --config PATH/config.json") from error


def _of_family(family: Backbone, content: dict[str, Any]) -> PreTrainedConfig:
    config: PreTrainedConfig = named_class(family.model_class).config_class.from_dict(content)
    return config


def model_on_meta(
    config: PreTrainedConfig,
    backbone: BackboneConfig,
    pointer: PointerConfig,
    revisit: RevisitConfig | None = None,
    freeze_names: Sequence[str] = (),
    adapter: AdapterConfig = NONE,
) -> PointAndCopyModel:
    """The whole model on the meta device: parameters have shapes and no memory.

    freeze_names: as `freeze` of `V1Module`. With adapters of the kind `qlora`, weights are as without.
    """
    from transformers.initialization import no_init_weights

    family = get_backbone(backbone.name)
    config = type(config).from_dict(config.to_dict())  # building writes into it
    with torch.device("meta"), no_init_weights():
        inner = named_class(family.model_class)._from_config(config, attn_implementation="sdpa")
        whole = PointAndCopyConfig(
            inner.config,
            family=backbone.name,
            pointer=asdict(pointer),
            revisit=asdict(revisit or RevisitConfig()),
        )
        model = PointAndCopyModel(whole, backbone=inner)
    model.tie_weights()
    freeze(model.backbone, family, [part for part in backbone.freeze if part != "pointer"])
    if adapter:
        refuse_frozen(backbone, adapter)
        model.adapter = adapter
        model.injected = inject(model.backbone, family, adapter, packed=False)
    if "pointer" in backbone.freeze:
        for part in model.own_parts:
            part.requires_grad_(False)
    freeze_matching(model, freeze_names)
    enable_checkpointing(model.backbone, family, backbone.gradient_checkpointing)
    return model.train()


def split_layers(model: PointAndCopyModel, ranks: int) -> None:
    """Narrow the matrices of the language layers, on the meta device, to the part of one of these ranks.

    As `v1lit.parallel.tensor_parallel` divides them; raises what it raises.
    """
    config = model.config.get_text_config()
    refuse_uneven(config, ranks)
    decoder = model.backbone.get_decoder()
    names = {module: name for name, module in decoder.named_modules()}
    for layer in part_layers(model.backbone, model.family, "language"):
        for name, way in layer_plan(layer, names[layer], config).items():
            matrix: Any = layer.get_submodule(name)
            weight, bias = matrix.weight, matrix.bias
            dimension = 0 if way == COLUMNS else 1
            matrix.weight = _narrowed(weight, dimension, ranks)
            if bias is not None and way == COLUMNS:
                matrix.bias = _narrowed(bias, 0, ranks)


def _narrowed(parameter: nn.Parameter, dimension: int, ranks: int) -> nn.Parameter:
    part = parameter.detach().narrow(dimension, 0, parameter.shape[dimension] // ranks)
    return nn.Parameter(torch.empty_like(part), requires_grad=parameter.requires_grad)
