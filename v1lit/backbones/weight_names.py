"""Which tensors of a checkpoint's files become which weights of a model.

By transformers' own rules, with which it opens checkpoints of older layouts: tensors are renamed, and of some
models converted. Applied to names and shapes alone, so no weight is read to know.

Source: transformers, core_model_loading.py, `convert_and_load_state_dict_in_model`, and modeling_utils.py,
`PreTrainedModel._finalize_model_loading`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from v1lit.backbones.weight_files import TensorInfo


@dataclass
class Conversion:
    """Tensors of the files that are merged, split or turned into one or more weights."""

    name: str
    """The first of the weights."""
    converter: Any
    """What transformers does with the tensors."""
    sources: list[tuple[str, str]] = field(default_factory=list)
    """Of each tensor the converter's pattern that fits, and its name in the files."""

    def run(self, model: PreTrainedModel, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The weights by name, made of what `read` returns for the names in the files."""
        converter = copy.deepcopy(self.converter)
        for pattern, stored in self.sources:
            converter.add_tensor(self.name, stored, pattern, read(stored))
        made = converter.convert(self.name, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


@dataclass
class WeightNames:
    """Where the weights of a model are in a checkpoint's files, and what does not fit."""

    renamed: dict[str, str]
    """Name of a weight, and of the tensor that it is."""
    conversions: list[Conversion]
    """Of the other weights."""
    doubled: list[tuple[str, str]]
    """Pairs of weights that the model ties to each other and of which the files have both."""
    report: dict[str, set[Any]]
    """Missing, unexpected and mismatched keys, as `from_pretrained` reports them."""
    transforms: list[Any]
    """The rules that were used; transformers keeps them with a model, to save it in its layout again."""


def match_weights(model: PreTrainedModel, tensors: Mapping[str, TensorInfo]) -> WeightNames:
    """Find the weights of a stock model, which may be on `meta`, among the tensors of a checkpoint."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import dot_natural_key

    transforms = get_model_conversion_mapping(model)
    state = model.state_dict()
    renamed: dict[str, str] = {}
    conversions: dict[str, Conversion] = {}
    unexpected: set[str] = set()
    for stored in sorted(tensors, key=dot_natural_key):
        name, pattern, converter = _rename(model, transforms, state, stored)
        if name not in state:
            targets = [name] if converter is None else converter.target_patterns
            unexpected |= {name.replace(targets[0], target) for target in targets}
        elif converter is None:
            renamed.setdefault(name, stored)
        else:
            conversion = conversions.setdefault(name, Conversion(name, copy.deepcopy(converter)))
            conversion.sources.append((pattern, stored))
    shapes = {name: tensors[stored].shape for name, stored in renamed.items()}
    for conversion in conversions.values():
        shapes |= _converted_shapes(conversion, model, tensors)
    unexpected |= set(shapes) - set(state)
    missing, doubled = _account_for_ties(model, set(state) - set(shapes), renamed)
    wrong = {
        (name, shape, tuple(state[name].shape))
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    }
    report = _report(model, missing, unexpected, wrong)
    used = [transform for transform in transforms if transform.was_used()]
    return WeightNames(renamed, list(conversions.values()), doubled, report, used)


def _rename(
    model: PreTrainedModel, transforms: list[Any], state: Mapping[str, Tensor], stored: str
) -> tuple[str, str, Any]:
    """The weight's name; where renaming is not enough, also the converter and which of its patterns fits."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    expected: Any = state
    name, pattern = rename_source_key(stored, renamings, converters, model.base_model_prefix, expected)
    if name not in state and stored in state:
        name, pattern = rename_source_key(stored, [], [], model.base_model_prefix, expected)
    if pattern is None:
        return name, "", None
    # As in transformers: of converters with the same pattern, the last.
    return (
        name,
        pattern,
        {p: converter for converter in converters for p in converter.source_patterns}[pattern],
    )


def _converted_shapes(
    conversion: Conversion, model: PreTrainedModel, tensors: Mapping[str, TensorInfo]
) -> dict[str, tuple[int, ...]]:
    import torch

    made = conversion.run(model, lambda stored: torch.empty(tensors[stored].shape, device="meta"))
    return {name: tuple(tensor.shape) for name, tensor in made.items()}


def _account_for_ties(
    model: PreTrainedModel, missing: set[str], renamed: Mapping[str, str]
) -> tuple[set[str], list[tuple[str, str]]]:
    """What is missing even if one of several tied weights is enough, and pairs of which both are there."""
    groups: dict[str, list[str]] = {}
    for target, source in model.all_tied_weights_keys.items():
        groups.setdefault(source, [source]).append(target)
    doubled = []
    for group in groups.values():
        if not missing.issuperset(group):
            missing = missing - set(group)
        present = [name for name in group if name in renamed]
        doubled += [(present[0], other) for other in present[1:]]
    return missing, doubled


def _report(
    model: PreTrainedModel, missing: set[str], unexpected: set[str], wrong: set[Any]
) -> dict[str, set[Any]]:
    info: Any = SimpleNamespace(missing_keys=missing, unexpected_keys=unexpected)
    model._adjust_missing_and_unexpected_keys(info)  # leaves out what the model's class says not to mind
    return {
        "missing_keys": info.missing_keys,
        "unexpected_keys": info.unexpected_keys,
        "mismatched_keys": wrong,
    }
