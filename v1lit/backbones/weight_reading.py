"""Tensors of a checkpoint folder, or parts of them, read one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from v1lit.backbones.weight_files import TensorInfo, read_header, read_headers, weight_files

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Slices = tuple[slice, ...]
"""Which part of a tensor, one slice per axis; without any, the whole tensor."""
COMPARED = 2**24
"""Elements of two tensors that are compared at a time."""


class WeightFiles:
    """The safetensors files of a folder, opened anew for every tensor.

    What has been read of a mapped file counts as the process's memory for as long as the mapping lives, which
    here is no longer than the use of one tensor. Raises WeightsUnavailable for files that are missing or
    damaged.

    Args:
        folder: with a single file, or shards and their index.
    """

    def __init__(self, folder: Path) -> None:
        self.tensors: dict[str, TensorInfo] = read_headers(folder)
        """Type and shape of all tensors by name."""
        self._files = {name: path for path in weight_files(folder) for name in read_header(path)}

    def read(self, name: str, part: Slices = ()) -> Tensor:
        """A part of a tensor, as a view of the mapped file: copy it, and let the view go."""
        from safetensors import safe_open

        with safe_open(self._files[name], framework="pt") as file:
            view: Tensor = file.get_slice(name)[part or ...]
        return view

    def equal(self, one: str, other: str, dtype: torch.dtype) -> bool:
        """Whether two tensors are the same once they are of this type. Reads a block of rows at a time."""
        import torch

        shape = self.tensors[one].shape
        if shape != self.tensors[other].shape:
            return False
        rows = max(1, COMPARED // max(1, torch.Size(shape[1:]).numel()))
        blocks = [(slice(start, start + rows),) for start in range(0, shape[0], rows)]
        return all(
            torch.equal(self.read(one, block).to(dtype), self.read(other, block).to(dtype))
            for block in blocks
        )
