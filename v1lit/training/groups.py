"""Which rate every parameter learns with: that of its part, less the deeper its layer lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn

from v1lit.backbones.config import LAYERED
from v1lit.backbones.load import part_parameters
from v1lit.errors import OptionError, first_of
from v1lit.pointer.model import PointAndCopyModel
from v1lit.training.config import OptimizerConfig
from v1lit.training.logged import LEARNING_RATE


class Place(NamedTuple):
    """Where a parameter lies, as far as the options of the optimizer depend on it."""

    part: str = ""
    """Empty where no part has options of its own, and for a parameter of none."""
    depth: int = 0
    """Layers from the highest one of the part that learns; 0 where all learn alike."""

    def rate(self, config: OptimizerConfig) -> float:
        """The peak learning rate here."""
        return config.parts.get(self.part, {}).get("lr", config.lr) * config.layer_decay**self.depth

    def weight_decay(self, config: OptimizerConfig) -> float:
        """Of matrices that lie here."""
        return config.parts.get(self.part, {}).get("weight_decay", config.weight_decay)


def places(model: PointAndCopyModel, config: OptimizerConfig) -> dict[str, Place]:
    """The place of every parameter that learns, by name.

    What parameters share a place depends on the model and on whether there are `parts` and a `layer_decay`,
    not on their values. Raises OptionError for a part of which nothing learns, and where a `layer_decay` is
    asked for and the family names no layers.
    """
    part_of = {id(own): part for part, held in _parts(model) for own in held.values()}
    depths = _depths(model, config) if config.layer_decay != 1 else {}
    learns = {name: own for name, own in model.named_parameters() if own.requires_grad}
    found = [part for part, held in _parts(model) if any(own.requires_grad for own in held.values())]
    for part, given in config.parts.items():
        if part not in found:
            why = f"nothing of {part} learns in this model; parts that learn: {first_of(found, 9) or 'none'}"
            raise OptionError(f"parts.{part}", given, why, "model.optimizer")
    divided = bool(config.parts)
    return {
        name: Place(part_of.get(id(own), "") if divided else "", depths.get(id(own), 0))
        for name, own in learns.items()
    }


def learning_rates(groups: list[dict[str, float]], config: OptimizerConfig) -> dict[str, float]:
    """The rates of this step by the names under which they are logged, those of parts with their own too.

    groups: of an optimizer. Under a `layer_decay`, rates are those of the top layers.
    """
    share = groups[0]["lr"] / groups[0].get("initial_lr", groups[0]["lr"])
    own = {part: options["lr"] for part, options in config.parts.items() if "lr" in options}
    named = {f"{LEARNING_RATE}_{part}": rate for part, rate in own.items()}
    return {name: rate * share for name, rate in {LEARNING_RATE: config.lr, **named}.items()}


def _parts(model: PointAndCopyModel) -> Iterator[tuple[str, Mapping[str, nn.Parameter]]]:
    for part in model.family.parts:
        yield part, part_parameters(model.backbone, model.family, part)
    own_parts = enumerate(model.own_parts)
    yield "pointer", {f"{n}.{name}": own for n, part in own_parts for name, own in part.named_parameters()}


def _depths(model: PointAndCopyModel, config: OptimizerConfig) -> dict[int, int]:
    """Of the parameters of layered parts by identity; what no layer has lies below or above all layers."""
    depths: dict[int, int] = {}
    for part, held in _parts(model):
        if part not in LAYERED or not any(own.requires_grad for own in held.values()):
            continue
        layers = model.family.layers(model.backbone, part)
        if not layers:
            why = f"{model.family.name} names no layers of its {part} part\nset 1, or freeze {part}"
            raise OptionError("layer_decay", config.layer_decay, why, "model.optimizer")
        levels = {id(own): level for level, layer in enumerate(layers) for own in layer.parameters()}
        learned = [levels[id(own)] for own in held.values() if own.requires_grad and id(own) in levels]
        top, below = max(learned, default=len(layers) - 1), True
        for name, own in held.items():
            below = below and id(own) not in levels
            level = levels.get(id(own), -1 if below or "embed" in name else top)
            depths[id(own)] = max(0, top - level)
    return depths
