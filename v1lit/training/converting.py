"""From a model's folder in one layout to the other, and back: weight by weight, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.initialization import no_init_weights

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.folder import (
    OURS,
    PUBLISHED,
    check_exported,
)
from v1lit.backbones.processor import Processor, load_processor
from v1lit.backbones.weight_files import read_json
from v1lit.backbones.weight_reading import WeightFiles
from v1lit.errors import first_of
from v1lit.parallel.weight_stream import exported_names, published_names
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.model_config import PointAndCopyConfig
from v1lit.pointer.published import left_out_of_published, read_published_config
from v1lit.pointer.published_processor import read_published_processor
from v1lit.training.card import Origin, write_card
from v1lit.training.comparing import Layout, open_export
from v1lit.training.exporting import (
    SHARD_BYTES,
    Exported,
    ExportOptions,
    check_written,
    compare_tensors,
    writing,
)

LAYOUTS: Mapping[str, Layout] = {OURS: "v1lit", PUBLISHED: "published"}
"""The layout of a folder, by the `model_type` of its config."""
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Converted:
    """What has been written, and what has not."""

    files: Exported
    left_out: dict[str, Any]
    """Options of training that the new layout has no place for, with their values."""


def convert_folder(
    source: Path, to: Layout, out: Path, backbone: str | None = None, shard_bytes: int = SHARD_BYTES
) -> Converted:
    """Write the model of a folder in the other layout, to a new folder, whole or not at all.

    Weights keep their values and types; every tensor is compared, and the logits of a prompt where the model
    fits into memory.

    Args:
        source: what `v1lit.load` opens, or a checkpoint in the published layout.
        to: the layout to write.
        out: the new folder.
        backbone: where tokenizer and image processor are taken from, for a source that has none.
        shard_bytes: most bytes of a file.

    Raises ValueError for a folder of another kind or in that layout already, for files that are missing or
    damaged, for a model that the layout cannot hold, by name, and for a folder that is there already; and
    ExportMismatchError.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; name a new folder")
    folder = FolderSource.open(source, backbone)
    if folder.layout == to:
        raise ValueError(f"{source} is in the {to} layout already; copy it as it is")
    model = folder.empty_model()
    left_out = left_out_of_published(folder.config) if to == "published" else {}
    options = ExportOptions(layout=to, shard_bytes=shard_bytes)
    with writing(out, model, folder.processor, folder.read, options) as (written, plan):
        del model
        check = compare_tensors(written, folder, plan)
        told = check_written(written, folder, plan, options)
        check += "" if told.startswith(check) else f"\n{told}"
        write_card(written, Origin.of(str(source), source), check)
    return Converted(Exported(len(plan.names), plan.bytes, len(plan.shards), check), left_out)


class FolderSource:
    """A folder in either layout, as weights of the model that it holds.

    Args:
        path: the folder.
        layout: in which it is.
        config: of the model.
        backbone: where tokenizer and image processor are taken from instead.
    """

    def __init__(self, path: Path, layout: Layout, config: PointAndCopyConfig, backbone: str | None) -> None:
        self.path, self.layout, self.config, self.backbone = path, layout, config, backbone
        self.dtype: torch.dtype | None = None
        self._files = WeightFiles(path)
        self._names: dict[str, str] = {}
        """What the files call a weight, by the model's own name."""

    @classmethod
    def open(cls, path: Path, backbone: str | None = None) -> FolderSource:
        """A folder of which nothing but the config is read yet. Raises ValueError for another kind."""
        content = read_json(path / "config.json") if (path / "config.json").is_file() else {}
        layout = LAYOUTS.get(str(content.get("model_type")))
        if layout == "published":
            return cls(path, layout, read_published_config(path), backbone)
        check_exported(path)
        return cls(path, "v1lit", PointAndCopyConfig.from_pretrained(path), backbone)

    def read(self, name: str) -> Tensor:
        """A weight by the model's name."""
        return self._files.read(self._names[name])

    def empty_model(self) -> PointAndCopyModel:
        """The model on `meta`, its parameters of the types of the files.

        Raises ValueError unless the folder has exactly its weights, and for one that the published layout
        cannot hold.
        """
        with no_init_weights(), torch.device("meta"):
            model = PointAndCopyModel(self.config)
        model.tie_weights()
        if (self.path / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(self.path)
        published = published_names(model)
        names = published if self.layout == "published" else exported_names(model)
        self._names = {own: name for name, own in names.items()}
        self._refuse_misfit(model)
        for own, parameter in model.named_parameters():
            if own in self._names:
                parameter.data = parameter.data.to(_DTYPES[self._files.tensors[self._names[own]].dtype])
        return model.eval()

    def _refuse_misfit(self, model: PointAndCopyModel) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        held = {name: info.shape for name, info in self._files.tensors.items()}
        wanted = {name: shapes[own] for own, name in self._names.items()}
        odd = {name for name in wanted.keys() & held.keys() if held[name] != wanted[name]}
        packed = {name for name, info in self._files.tensors.items() if info.dtype not in _DTYPES}
        for what, names in (
            ("missing", wanted.keys() - held.keys()),
            ("unexpected", held.keys() - wanted.keys()),
            ("of another shape", odd),
            ("of no plain type", packed),
        ):
            if names:
                raise ValueError(
                    f"{self.path} does not fit its config.json; weights {what}: {first_of(sorted(names))}"
                )

    def whole_model(self, as_written: bool = True) -> PointAndCopyModel:
        """The model with its weights, which are written as they are."""
        return open_export(self.path, self.layout)

    def processor(self, model: PointAndCopyModel) -> Processor:
        """The folder's own, or that of another folder or hub id."""
        if self.backbone is not None:
            backbone = BackboneConfig(self.config.family, weights=self.backbone)
            return load_processor(backbone, self.config.pointer_start, model.strategy)
        if self.layout == "published":
            return read_published_processor(self.path, self.config)
        return Processor.from_pretrained(self.path)
