"""Reading checkpoint folders: any part of any tensor, whatever ranks have written it, and no more."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from v1lit.errors import one_line
from v1lit.parallel.boxes import Box, tile
from v1lit.parallel.shard_files import HEADER, STATE, read_complete

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""Types of numbers, as safetensors calls them, that may lie in a checkpoint."""
LARGEST_STATE = 2**30
"""Bytes of `state.pt`, which holds no large tensors."""
OPEN_FILES = 64


@dataclass
class Whole:
    """A tensor that lies in parts."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: dict[Box, Path] = field(default_factory=dict)
    """Where they lie; of the same part in two files, the first."""


class CheckpointFolder:
    """A complete checkpoint folder, read lazily.

    Raises ValueError, here or when a tensor is asked for, for a folder that is not complete, and for headers
    that contradict each other or leave a part of a tensor out.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors: dict[str, Whole] = {}
        self._opened = lru_cache(maxsize=OPEN_FILES)(partial(safe_open, framework="pt"))
        for name in sorted(read_complete(path)):
            if name != STATE:
                self._read_header(path / name)

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a whole tensor."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """The type of its numbers."""
        return self._tensors[name].dtype

    def tensor(self, name: str) -> Tensor:
        """A whole tensor."""
        return self.box(name, Box.whole(self.shape(name)))

    def box(self, name: str, box: Box) -> Tensor:
        """A part of a tensor, put together from those that overlap it; nothing else is read."""
        whole = self._tensors[name]
        shared = {part: both for part in whole.parts if (both := part.overlap(box))}
        if not box.fits(whole.shape) or not tile(shared.values(), box):
            raise ValueError(
                f"{self.path} is damaged: the parts of {name} {list(whole.shape)} leave elements out, or "
                f"hold them twice, among the {list(box.sizes)} at {list(box.offsets)}"
            )
        pieces = (
            (both, self._slice(whole.parts[part], name, both.within(part))) for part, both in shared.items()
        )
        if len(shared) == 1:
            return next(pieces)[1]
        made = torch.empty(box.sizes, dtype=whole.dtype)
        for both, piece in pieces:
            made[both.within(box)] = piece
        return made

    def check(self) -> None:
        """Raise ValueError unless the parts of every tensor are all of it; reads no tensor."""
        for name, whole in self._tensors.items():
            if not tile(whole.parts, Box.whole(whole.shape)):
                held = ", ".join(f"{list(part.sizes)} at {list(part.offsets)}" for part in whole.parts)
                raise ValueError(
                    f"{self.path}: the ranks' parts of {name} {list(whole.shape)} are not all of it, or "
                    f"overlap: {held[:200]}"
                )

    @property
    def state(self) -> dict[str, Any]:
        """Everything that is no large tensor. Raises ValueError for a file that is none or could run code."""
        path = self.path / STATE
        if path.stat().st_size > LARGEST_STATE:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, which no state of a run needs")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"{path} cannot be read: {reason}") from error
        if not isinstance(state, dict):
            raise ValueError(f"{path} must hold a mapping, not {type(state).__name__}")
        return state

    def _read_header(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                places = json.loads((file.metadata() or {})[HEADER])
                found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                sizes = {name: tuple(part.get_shape()) for name, part in found.items()}
                dtypes = {name: DTYPES[part.get_dtype()] for name, part in found.items()}
            if set(places) != set(sizes):
                raise ValueError("it places other tensors than it holds")
            for name, size in sizes.items():
                self._add(name, path, _place(places[name], size), dtypes[name])
        except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is no file of a checkpoint: {one_line(error)}") from error

    def _slice(self, path: Path, name: str, slices: tuple[slice, ...]) -> Tensor:
        file = self._opened(path)
        part: Tensor = file.get_slice(name)[slices] if slices else file.get_tensor(name)
        return part

    def _add(self, name: str, path: Path, place: tuple[tuple[int, ...], Box], dtype: torch.dtype) -> None:
        shape, box = place
        whole = self._tensors.setdefault(name, Whole(shape, dtype))
        if (whole.shape, whole.dtype) != (shape, dtype):
            before = f"{whole.dtype} {list(whole.shape)}"
            raise ValueError(f"{name} is {dtype} {list(shape)} here, {before} in another file")
        whole.parts.setdefault(box, path)


def _place(entry: Mapping[str, Any], sizes: tuple[int, ...]) -> tuple[tuple[int, ...], Box]:
    """The whole shape and the part, of what a header says. Raises what a wrong one raises."""
    shape, offsets = tuple(entry["shape"]), tuple(entry["offsets"])
    if not all(type(number) is int and 0 <= number < 2**62 for number in (*shape, *offsets)):
        raise ValueError("shapes and offsets are numbers from 0 on")
    if len(offsets) != len(sizes) or not (box := Box(offsets, sizes)).fits(shape):
        raise ValueError(f"a part {list(sizes)} at {list(offsets)} is not inside {list(shape)}")
    return shape, box
