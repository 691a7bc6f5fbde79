"""Which layers of a backbone have adapters, and what is trained whole beside them: by their paths."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from v1lit.backbones.adapters.config import EMBEDDINGS, AdapterConfig
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.contract import Backbone
from v1lit.backbones.empty import on_meta
from v1lit.backbones.load import checkpoint_config, part_parameters
from v1lit.backbones.registry import get_backbone
from v1lit.backbones.tiny import tiny_tokenizer
from v1lit.errors import OptionError, first_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

GROUP = f"model.{AdapterConfig.GROUP}"
SHOWN = 12


def linear_layers(model: PreTrainedModel, family: Backbone, part: str) -> list[str]:
    """Paths of the linear layers of a part, but for the language-model head and what no feature depends on.

    Stacked weights, such as those of experts, are no linear layers.
    """
    from torch import nn

    own = set(map(id, part_parameters(model, family, part).values()))
    left_out = {id(module) for unused in family.unused_modules(model) for module in unused.modules()}
    left_out.add(id(model.get_output_embeddings()))
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in left_out and id(module.weight) in own
    ]


def chosen_layers(model: PreTrainedModel, family: Backbone, adapter: AdapterConfig) -> dict[str, list[str]]:
    """The layers that get adapters, by part.

    Raises OptionError for a part without linear layers, and for a pattern that matches none, naming those
    that there are.
    """
    found: dict[str, list[str]] = {part: linear_layers(model, family, part) for part in adapter.parts}
    for part, paths in found.items():
        if not paths:
            why = f"{family.name} has no linear layers in its {part} part"
            raise OptionError("parts", list(adapter.parts), why, GROUP)
    for pattern in adapter.modules:
        if not any(fnmatchcase(path, pattern) for paths in found.values() for path in paths):
            there = [line for part, paths in found.items() for line in counted(part, paths)]
            why = f"{pattern!r} matches no linear layer; there are: {first_of(there, SHOWN)}"
            raise OptionError("modules", list(adapter.modules), why, GROUP)
    chosen = {
        part: [path for path in paths if any(fnmatchcase(path, pattern) for pattern in adapter.modules)]
        for part, paths in found.items()
    }
    for part, paths in chosen.items():
        if not paths:
            there = counted(part, found[part])
            why = f"none of them matches a layer of {part}; there are: {first_of(there, SHOWN)}"
            raise OptionError("modules", list(adapter.modules), why, GROUP)
    return chosen


def refuse_frozen(backbone: BackboneConfig, adapter: AdapterConfig) -> None:
    """Raise OptionError for a part that shall be frozen and learn."""
    for part in backbone.freeze:
        learns = "parts" if part in adapter.parts else "train" if part in adapter.train else None
        if learns is not None:
            why = f"model.adapter.{learns} names {part} too; with adapters all else is frozen anyway"
            raise OptionError("freeze", list(backbone.freeze), why, "model.backbone")


def check_layers(backbone: BackboneConfig, adapter: AdapterConfig) -> None:
    """Raise OptionError, before any weight is read, for layers that the model does not have."""
    from v1lit.backbones.classes import named_class

    refuse_frozen(backbone, adapter)
    family = get_backbone(backbone.name)
    if backbone.weights == "tiny":
        config = family.tiny_config(tiny_tokenizer(family.chat.stop, family.chat.single), **backbone.tiny)
    else:
        config = checkpoint_config(family, backbone.weights)
    chosen_layers(on_meta(named_class(family.model_class), config), family, adapter)


def counted(part: str, paths: Iterable[str]) -> list[str]:
    """The layers of a part by their names, with how many there are of each: `language *.q_proj x 28`."""
    names = Counter(re.sub(r"^.*\.\d+\.", "*.", path) for path in paths)
    return [f"{part} {name} x {count}" for name, count in names.items()]


def whole_parameters(
    model: PreTrainedModel, family: Backbone, adapter: AdapterConfig
) -> Mapping[str, nn.Parameter]:
    """What of the backbone is trained whole, by name; tied embeddings under one name."""
    found: dict[str, nn.Parameter] = {}
    unused = {id(p) for module in family.unused_modules(model) for p in module.parameters()}
    for part in adapter.train:
        if part == EMBEDDINGS:
            tables = {id(table.weight) for table in _tables(model)}
            found |= {name: own for name, own in model.named_parameters() if id(own) in tables}
        else:
            held = part_parameters(model, family, part)
            found |= {name: own for name, own in held.items() if id(own) not in unused}
    return found


def whole_modules(names: Iterable[str]) -> list[str]:
    """Paths of the modules that hold these parameters, none inside another."""
    owners = {name.rpartition(".")[0] for name in names}
    return sorted(path for path in owners if not any(path.startswith(other + ".") for other in owners))


def _tables(model: PreTrainedModel) -> list[nn.Module]:
    return [model.get_input_embeddings(), model.get_output_embeddings()]
