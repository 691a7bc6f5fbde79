"""Adapters merged into the weights of their backbone: a model like any other, compared with what it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from v1lit.backbones.adapters.config import QLORA
from v1lit.backbones.adapters.folder import AdapterFolder, adapter_folder
from v1lit.backbones.adapters.inject import merge
from v1lit.backbones.processor import Processor
from v1lit.inference.generating import settle
from v1lit.pointer.adapted import base_dtype, kept_names
from v1lit.pointer.model import PointAndCopyModel
from v1lit.training.card import Origin
from v1lit.training.comparing import NOTHING, compare_logits, logits, open_export
from v1lit.training.exporting import CheckpointSource, Exported, ExportOptions, finishing, writing

UNPACKED = "its weights are those that the 4 bits of the backbone stood for, and not the backbone's own"


class Adapted(NamedTuple):
    """A model with adapters in memory, in float32 what was trained, and its processor."""

    model: PointAndCopyModel
    processor: Processor


def export_merged(path: Path, out: Path, options: ExportOptions | None = None) -> Exported:
    """Merge the adapters of a checkpoint, or of an adapter's folder, and write the model to a new folder.

    The whole model is in memory. Weights in 4 bits become those that they stand for. The logits of a prompt
    are compared before the merge and after it, with the model that was written. Raises ValueError for what
    has no adapters and for a folder that is there already, and ExportMismatchError.
    """
    options = options or ExportOptions()
    if out.exists():
        raise ValueError(f"{out} exists already; name a new folder")
    found = adapter_folder(path, options.backbone)
    model, processor = _of_checkpoint(path, options) if found is None else _of_folder(found)
    assert model.base is not None
    finish = finishing(model, Origin.of(model.base.weights, path), options)
    packed, kind = model.adapter.kind == QLORA, base_dtype(model)
    before = logits(model, processor)
    for name in kept_names(model):
        if name in dict(model.named_parameters()) and ".lora_" not in name:
            own = model.get_parameter(name)
            own.data = own.data.to(kind)
    merge(model.backbone)
    model.adapter, model.injected = replace(model.adapter, kind=None), None
    everything: nn.Module = model
    written = kind if options.dtype is None else getattr(torch, options.dtype)
    everything.to(written)
    read, check = model.state_dict().__getitem__, NOTHING
    settle(model, processor)
    with writing(out, model, lambda model: processor, read, options) as (folder, plan):
        del model, everything, read  # two of them might not fit
        if options.check != "none":
            after = logits(open_export(folder, options.layout), processor)
            when = " before and after merging"
            check = compare_logits(before, after, kind, written, than="with adapters", when=when)
        if packed:
            check += f"\n{UNPACKED}"
        check = finish(folder, check)
    return Exported(len(plan.names), plan.bytes, len(plan.shards), check)


def _of_folder(found: AdapterFolder) -> Adapted:
    model = PointAndCopyModel.from_adapter(found, alike=False)
    return Adapted(model, Processor.from_pretrained(found.path))


def _of_checkpoint(path: Path, options: ExportOptions) -> Adapted:
    source = CheckpointSource.open(path, options)
    if not source.has_adapters:
        raise ValueError(f"{path} has no adapters to merge\nexport it without --merge")
    model = source.adapted_model()
    return Adapted(model, source.processor(model))
