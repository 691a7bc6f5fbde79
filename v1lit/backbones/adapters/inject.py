"""Adapters put into a stock model, in place: its own modules stay where they are, inside of those of peft."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from v1lit.backbones.adapters.config import DORA, QLORA, AdapterConfig
from v1lit.backbones.adapters.layers import chosen_layers, counted, whole_parameters
from v1lit.backbones.adapters.library import check_libraries
from v1lit.backbones.adapters.quantized import PackedLayers, numbers_in, pack_layers
from v1lit.backbones.contract import Backbone

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

NAME = "default"
"""How peft calls the one adapter that there is."""
WRAPPED = ".base_layer."
"""Stands in the names of weights that have an adapter beside them."""


@dataclass(frozen=True)
class Injected:
    """What has been put into a backbone; names are those of its parameters."""

    layers: dict[str, list[str]]
    """Paths of the layers with adapters, by part."""
    adapters: list[str] = field(default_factory=list)
    """Of the adapters' own matrices and vectors."""
    whole: list[str] = field(default_factory=list)
    """Of what is trained whole beside them."""

    @property
    def kept(self) -> list[str]:
        """Of all that is trained: what a checkpoint holds of the backbone."""
        return [*self.adapters, *self.whole]

    def lines(self, adapter: AdapterConfig, model: nn.Module) -> list[str]:
        """For people: which layers were hit, and what of a model learns."""
        hit = [line for part, paths in self.layers.items() for line in counted(part, paths)]
        own = set(self.adapters)
        named = dict(model.named_parameters())
        sizes = {name: numbers_in(parameter) for name, parameter in named.items()}
        learned = sum(sizes[name] for name, parameter in named.items() if parameter.requires_grad)
        of_adapters = sum(size for name, size in sizes.items() if name.removeprefix("backbone.") in own)
        total = sum(sizes.values())
        return [
            f"model.adapter: {adapter.kind} of rank {adapter.rank} on {sum(map(len, self.layers.values()))} "
            f"layers: {', '.join(hit)}",
            f"model.adapter: {learned:,} of {total:,} numbers learn ({learned / total:.2%}); adapters have "
            f"{of_adapters:,}",
        ]


def plain_name(name: str) -> str:
    """How a weight is called where it has no adapter beside it."""
    return name.replace(WRAPPED, ".")


def inject(model: PreTrainedModel, family: Backbone, adapter: AdapterConfig, packed: bool = True) -> Injected:
    """Freeze a stock model, and put adapters beside its layers that change nothing until they have learned.

    What learns becomes float32. Parameters may be on `meta`; `start` gives the adapters their values.

    Args:
        model: of the family.
        family: says which parts it has.
        adapter: its options.
        packed: keep the weights of `qlora` in 4 bits, which takes values.

    Raises OptionError for layers that are not there, and libraries that are not installed.
    """
    check_libraries(adapter, packed)
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    chosen = chosen_layers(model, family, adapter)
    whole = whole_parameters(model, family, adapter)
    paths = [path for part in chosen.values() for path in part]
    in_four_bits = packed and adapter.kind == QLORA
    if in_four_bits:
        pack_layers(model, family, adapter.parts)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=cast(Any, adapter.alpha),  # peft takes any number
        lora_dropout=adapter.dropout,
        use_rslora=adapter.rslora,
        use_dora=adapter.kind == DORA,
        target_modules=paths,
        init_lora_weights=False,
        base_model_name_or_path="",
    )
    switches: Any = model
    switches.is_loaded_in_4bit = in_four_bits  # peft asks for it
    with torch.random.fork_rng(devices=[]):  # what is drawn here gives way to the values of `start`
        inject_adapter_in_model(config, model, NAME, low_cpu_mem_usage=_on_meta(model))
    del switches.is_loaded_in_4bit
    for _, module in _adapted(model):
        module.cast_input_dtype_enabled = False  # else autocast would make a copy in float32 first
    found = [name for name, _ in model.named_parameters() if ".lora_" in name]
    injected = Injected(chosen, found, list(whole))
    for name in injected.kept:
        parameter = model.get_parameter(name)
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return injected


def start(model: nn.Module, seed: int, whole: Callable[[Tensor], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The values with which adapters begin, by name, one after the other: those of peft, from a seed.

    The first matrix is drawn, the second is zero, and DoRA's lengths are those of the rows.

    Args:
        model: with adapters.
        seed: of the draws.
        whole: makes a whole weight of one that is divided over ranks.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    for path, module in _adapted(model):
        first, second = module.lora_A[NAME].weight, module.lora_B[NAME].weight
        drawn = torch.empty(first.shape)
        torch.nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        yield f"{path}.lora_A.{NAME}.weight", drawn
        yield f"{path}.lora_B.{NAME}.weight", torch.zeros(second.shape)
        if NAME in module.lora_magnitude_vector:
            weight = whole(module.get_base_layer().weight.detach())
            # In the weight's own type, as it is done in every forward pass.
            yield f"{path}.lora_magnitude_vector.{NAME}.weight", torch.linalg.norm(weight, dim=1)


def merge(model: nn.Module) -> None:
    """Put the adapters into the weights, and take them out: the stock model again, in place.

    Weights in 4 bits become those that they stand for, in the type in which they compute.
    """
    packed = PackedLayers.of(model)
    for path, module in list(_adapted(model)):
        layer = module.get_base_layer()
        if module.use_dora[NAME]:
            module.merge(safe_merge=True)
        else:
            layer = packed.plain(layer) if layer in packed else layer
            weight = layer.weight.data
            layer.weight.data = (weight.float() + module.get_delta_weight(NAME).float()).to(weight.dtype)
        model.set_submodule(path, layer)
    for path, module in list(model.named_modules()):
        if module in packed:
            model.set_submodule(path, packed.plain(module))
    del model.peft_config


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The modules of peft that stand around layers, by their paths."""
    from peft.tuners.lora import LoraLayer

    return ((path, module) for path, module in model.named_modules() if isinstance(module, LoraLayer))


def _on_meta(model: nn.Module) -> bool:
    parameter: torch.Tensor = next(model.parameters())
    return parameter.is_meta
