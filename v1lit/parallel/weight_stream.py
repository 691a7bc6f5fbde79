"""Writing a model's folder of safetensors from weights that are read one by one; nothing holds them all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from v1lit.backbones.weight_files import INDEX, SINGLE
from v1lit.files import write_atomically
from v1lit.pointer.base import PointAndCopyBase
from v1lit.pointer.model_config import PointAndCopyConfig
from v1lit.pointer.published import published_name, refuse_unpublishable

Read = Callable[[str], Tensor]
"""Returns a weight by the model's name for it."""


@dataclass(frozen=True)
class Plan:
    """Which file of a folder gets which weights."""

    shards: dict[str, dict[str, str]]
    """By file, what it calls a weight, and the model's own name for it."""
    bytes: int
    """Of all weights."""

    @property
    def names(self) -> dict[str, str]:
        """The model's own name for every weight in the files."""
        return {name: own for shard in self.shards.values() for name, own in shard.items()}


def plan_files(model: PointAndCopyBase, names: Mapping[str, str], largest: int) -> Plan:
    """Share weights out over files of at most `largest` bytes, but for a weight that is larger itself.

    Args:
        model: may be on `meta`; its types are those that are written.
        names: what files call a weight, and the model's own name for it.
        largest: bytes of a file.
    """
    state = model.state_dict()
    shards: list[dict[str, str]] = [{}]
    filled = total = 0
    for name, own in names.items():
        size = state[own].numel() * state[own].element_size()
        if shards[-1] and filled + size > largest:
            shards.append({})
            filled = 0
        shards[-1][name] = own
        filled, total = filled + size, total + size
    count = len(shards)
    files = [SINGLE] if count == 1 else [f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    return Plan(dict(zip(files, shards, strict=True)), total)


def write_weights(folder: Path, plan: Plan, model: PointAndCopyBase, read: Read) -> None:
    """Write the files of a plan, and an index of several; holds one file's weights at a time."""
    state = model.state_dict()
    for file, shard in plan.shards.items():
        tensors = {name: read(own).to(state[own].dtype).contiguous() for name, own in shard.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        del tensors
    if len(plan.shards) > 1:
        owners = {name: file for file, shard in plan.shards.items() for name in shard}
        index = {"metadata": {"total_size": plan.bytes}, "weight_map": owners}
        write_atomically(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")


def exported_names(model: PointAndCopyBase) -> dict[str, str]:
    """What `save_pretrained` calls every weight, and the model's own name; of tied ones, the first alone.

    transformers writes some families under the names of their first checkpoints. Where that takes more than
    other names, weights keep their own, which `from_pretrained` reads as well.
    """
    own = {name: torch.empty(0, device="meta") for name in _once(model)}
    written = revert_weight_conversion(model, dict(own))
    source = {id(tensor): name for name, tensor in own.items()}
    if {id(tensor) for tensor in written.values()} != set(source):
        return {name: name for name in own}
    return {name: source[id(tensor)] for name, tensor in sorted(written.items())}


def published_names(model: PointAndCopyBase) -> dict[str, str]:
    """What the published layout calls every weight, and the model's own name; of tied ones, the first.

    Raises what `refuse_unpublishable` raises.
    """
    assert isinstance(model.config, PointAndCopyConfig)
    refuse_unpublishable(model.config)
    tied = model.pointer_options.tie_heads
    return {published_name(name, tied): name for name in _once(model)}


def write_config(folder: Path, model: PointAndCopyBase) -> None:
    """Write `config.json` and `generation_config.json` as `save_pretrained` does."""
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def shared_names(module: nn.Module) -> dict[str, str]:
    """Further names of parameters that a module has under several, and the first one of each."""
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    pairs = [(name, first.setdefault(id(parameter), name)) for name, parameter in named]
    return {name: other for name, other in pairs if name != other}


def _once(model: nn.Module) -> list[str]:
    shared = shared_names(model)
    return [name for name in model.state_dict() if name not in shared]
