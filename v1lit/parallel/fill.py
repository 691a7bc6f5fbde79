"""Weights into a model that was made empty and then cut: every process reads its own part.

`PointAndCopyModel.build(..., empty=True)` makes it. What a process reads of a file at a time is its part of
one tensor, so that no process ever holds the whole model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from v1lit.backbones.adapters.folder import AdapterFolder, adapter_folder, base_config
from v1lit.backbones.adapters.inject import plain_name
from v1lit.backbones.classes import named_class
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.empty import on_meta
from v1lit.backbones.hub import local_folder
from v1lit.backbones.load import SHOWN, fit_weights
from v1lit.backbones.weight_reading import Slices, WeightFiles
from v1lit.errors import first_of
from v1lit.parallel.tensors import ModelTensor, model_tensors, tensors_by_name
from v1lit.pointer.head import PointerHead
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.model_config import PointAndCopyConfig

BACKBONE = "backbone."
HEAD, LOOK = "pointer_head.", "look."
Device = torch.device | str
Filled = Callable[[nn.Parameter], None]
"""Takes a parameter that has its values."""


def fill(
    model: PointAndCopyModel,
    backbone: BackboneConfig,
    device: Device,
    filled: Filled | None = None,
    begin_from: str | None = None,
) -> None:
    """Give a model the weights that `PointAndCopyModel.build` makes or loads, bit for bit.

    Seed torch before, alike on all ranks. Raises ValueError as `load_backbone` for files that do not fit.

    Args:
        model: made empty of the same config, whole or cut.
        backbone: what it was made of.
        device: where its parameters and buffers are from now on.
        filled: called with every parameter of the backbone that is, at once. Not with the head's, which a
            gate changes when all are.
        begin_from: folder of an exported model, all of whose weights are taken instead.
    """
    found, base = adapter_folder(backbone.weights), base_config(backbone)
    if begin_from is not None:
        fill_from_export(model, begin_from, device, filled)
    elif base.weights == "tiny":
        plain = replace(backbone, gradient_checkpointing=[], compile=[])
        options = model.pointer_options, model.config.revisit_options
        fill_from_model(model, PointAndCopyModel.build(plain, *options, adapter=model.adapter), device)
    else:
        fill_from_files(model, local_folder(base.weights), device, filled)
        start_pointer(model, device)
        if model.adapter:
            fill_adapters(model, found, device)
    move_buffers(model, device)
    check_filled(model)


def fill_from_files(
    model: PointAndCopyModel, folder: str | Path, device: Device, filled: Filled | None = None
) -> None:
    """Read the backbone's weights from a checkpoint folder in the transformers layout.

    A gate's doubling of `lm_head` is left to `start_pointer`. Tensors that transformers merges or splits
    while it loads are read whole, those of one weight at a time. Raises ValueError for weights that are
    missing, unexpected or of another shape, by name.
    """
    # The rules go by classes and names, which a cut model no longer has.
    config = copy.deepcopy(model.config.backbone_config)
    plain = on_meta(named_class(model.family.model_class), config)
    _fill_from_folder(model, plain, BACKBONE, folder, device, filled)


def fill_from_export(
    model: PointAndCopyModel, folder: str | Path, device: Device, filled: Filled | None = None
) -> None:
    """Read all weights, the pointer head's too, from a folder that v1lit has exported.

    Raises ValueError for weights that are missing, unexpected or of another shape, by name.
    """
    config = copy.deepcopy(model.config)
    assert isinstance(config, PointAndCopyConfig)
    with torch.device("meta"), no_init_weights():
        plain = PointAndCopyModel(config)
    _fill_from_folder(model, plain, "", folder, device, filled)


def _fill_from_folder(
    model: PointAndCopyModel,
    plain: PreTrainedModel,
    prefix: str,
    folder: str | Path,
    device: Device,
    filled: Filled | None,
) -> None:
    """Fill what of a model is called `prefix` and the name of a weight of `plain`, which is not cut."""
    files = WeightFiles(Path(folder))
    names = fit_weights(plain, files, str(folder))
    held, head = _by_plain_name(model), model.get_output_embeddings()
    for name, stored in names.renamed.items():
        if (one := held.get(prefix + name)) is not None:
            _fill_named(held, prefix + name, device, partial(files.read, stored))
            module, own, _ = one.places[0]
            parameter = module._parameters.get(own)
            if filled is not None and parameter is not None and parameter is not head.weight:
                filled(parameter)
    for conversion in names.conversions:
        read = partial(_read_as, files, held[prefix + conversion.name].tensor.dtype)
        for name, made in conversion.run(plain, read).items():
            _fill_named(held, prefix + name, device, made.__getitem__)


def fill_from_model(model: nn.Module, whole: nn.Module, device: Device) -> None:
    """Copy parameters and buffers from a model that this process holds whole; names must be the same."""
    held = tensors_by_name(model)
    for name, tensor in (*whole.named_parameters(), *whole.named_buffers()):
        _fill_named(held, name, device, tensor.detach().__getitem__)


def start_pointer(model: PointAndCopyModel, device: Device) -> None:
    """Draw what is no part of the backbone as `PointAndCopyModel.init_pointer` does.

    Seed torch before, alike on all ranks. Every rank draws the whole head, a matrix or two: a part of the
    random numbers cannot be drawn alone.
    """
    with torch.random.fork_rng(devices=[]):
        hidden = model.config.get_text_config().hidden_size
        head = PointerHead(hidden, model.pointer_options, model.strategy.ends)
        look = model.strategy.learned(hidden)
    head.init_weights(model.pointer_std)
    fresh: dict[str, nn.Module] = {HEAD: head}
    if look is not None:
        look.init_weights(model.pointer_std)
        fresh[LOOK] = look
    held = tensors_by_name(model)
    for prefix, module in fresh.items():
        for name, tensor in module.named_parameters():
            _fill_named(held, prefix + name, device, tensor.detach().__getitem__)
    model.double_head()


def fill_adapters(model: PointAndCopyModel, found: AdapterFolder | None, device: Device) -> None:
    """Give adapters beside filled weights their first values; of a folder, all that was trained."""
    held = tensors_by_name(model)
    for name, value in model.first_values(found).items():
        _fill_named(held, name, device, value.__getitem__)


def move_buffers(model: nn.Module, device: Device) -> None:
    """Put the buffers, which empty models have on the CPU, where the parameters are."""
    for one in model_tensors(model):
        if not isinstance(one.tensor, nn.Parameter) and not one.tensor.is_meta:
            one.move(torch.device(device))


def check_filled(model: nn.Module) -> None:
    """Raise RuntimeError naming parameters and buffers that still have no values."""
    left = [one.names[0] for one in model_tensors(model) if one.tensor.is_meta]
    if left:
        raise RuntimeError(f"{len(left)} tensors have been left without values: {first_of(left, SHOWN)}")


def _read_as(files: WeightFiles, dtype: torch.dtype, stored: str) -> Tensor:
    return files.read(stored).to(dtype)


def _by_plain_name(model: nn.Module) -> dict[str, ModelTensor]:
    """The tensors of a model by the names that they would have without adapters."""
    return {plain_name(name): one for name, one in tensors_by_name(model).items()}


def _fill_named(
    held: dict[str, ModelTensor], name: str, device: Device, read: Callable[[Slices], Tensor]
) -> None:
    """Fill the tensor of this name, and take all its names off the list."""
    one = held[name]
    one.fill(torch.device(device), read)
    for filled in one.names:
        held.pop(filled, None)
        held.pop(plain_name(filled), None)
