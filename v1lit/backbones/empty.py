"""Models of a checkpoint without their weights, for those that no process holds whole.

Parameters are on `meta`, everything else is as `from_pretrained` makes it. Such a model is cut first; then
every process reads its part.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v1lit.backbones.weight_files import PLAIN
from v1lit.backbones.weight_reading import WeightFiles

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel


def empty_model(cls: Any, folder: Path, dtype: str, attention: str) -> PreTrainedModel:
    """What `cls.from_pretrained(folder)` makes, with its parameters on `meta`; reads no weight.

    Args:
        cls: a model class of transformers.
        folder: config and safetensors files.
        dtype: name of the type of the parameters; `auto` takes the checkpoint's own.
        attention: `attn_implementation` of transformers.
    """
    import torch

    config = cls.config_class.from_pretrained(folder)
    kind = _checkpoint_dtype(config, WeightFiles(folder)) if dtype == "auto" else getattr(torch, dtype)
    model = on_meta(cls, config, dtype=kind, attn_implementation=attention)
    _keep_float32(model, kind)
    fill_buffers(model)
    model.generation_config = _generation_config(folder)
    return model.eval()


def on_meta(cls: Any, config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """A stock model of a config, all of it on `meta`. The config becomes the model's."""
    import torch

    with torch.device("meta"):
        model: PreTrainedModel = cls._from_config(config, **options)
    return model


def fill_buffers(model: PreTrainedModel) -> None:
    """Compute the buffers on `meta` that no checkpoint has, such as the frequencies of rotary embeddings.

    Source: transformers, modeling_utils.py, `_move_missing_keys_from_meta_to_device`.
    """
    import torch

    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
    # Every class computes its own; drawing on `meta` does nothing, also to the generator.
    model.initialize_weights()


def parameters_to_meta(model: nn.Module) -> None:
    """Let go of the values of all parameters, tied ones together; all else stays."""
    from torch import nn

    empty: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                made = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
                module._parameters[name] = empty.setdefault(parameter, made)


def _checkpoint_dtype(config: PreTrainedConfig, files: WeightFiles) -> torch.dtype:
    """That of the config, else of the first tensor of numbers.

    Source: transformers, modeling_utils.py, `_get_dtype`.
    """
    import torch

    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    first = next((name for name, info in files.tensors.items() if info.dtype in PLAIN), None)
    return torch.get_default_dtype() if first is None else files.read(first).dtype


def _keep_float32(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give parameters another type that their model's class says are no good in half precision."""
    from torch import nn

    plan = {re.compile(name.replace("*", ".*")): kept for name, kept in model._get_dtype_plan(dtype).items()}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            kept = next((kept for pattern, kept in plan.items() if pattern.search(f"{path}.{name}")), None)
            if parameter is not None and kept is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().to(kept))


def _generation_config(folder: Path) -> GenerationConfig:
    """Source: transformers, generation/utils.py, `adjust_generation_fn`."""
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)
