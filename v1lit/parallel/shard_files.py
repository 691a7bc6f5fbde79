"""Checkpoint folders: what lies in them, how they are written whole, and found again after a crash.

`rank-00000.safetensors` and so on hold the parts of tensors that each rank had, and in their header where in
the whole tensor a part belongs. `state.pt` is everything else, written by `torch.save` and read without
running code. `complete.json` comes last and lists the files with their sizes: a folder without it is none.

A folder is written beside its place as `.NAME.TOKEN.tmp`, then takes the place of an older one, which is
called `.NAME.old.tmp` for that moment. torch's own distributed checkpoints are not used: their index is a
pickle, which can run code.
"""

from __future__ import annotations

import io
import json
import re
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from v1lit.backbones.weight_files import WeightsUnavailable, read_json
from v1lit.errors import first_of
from v1lit.files import OLD, beside, put_in_place, remove_leftovers, to_disk, write_atomically
from v1lit.parallel.boxes import own_part

FORMAT = 1
COMPLETE = "complete.json"
STATE = "state.pt"
HEADER = "v1lit"
"""Key of a file's metadata: by tensor the whole shape and the offsets of this part, as JSON."""
RANK_FILE = re.compile(r"rank-\d{5}\.safetensors")
SECONDS_TO_APPEAR = 60.0
"""For files that other nodes wrote to a file system that all share."""


def rank_file(rank: int) -> str:
    """The name of a rank's file."""
    return f"rank-{rank:05}.safetensors"


# ------------------------------------------------------------------ writing


@dataclass
class Staged:
    """What a rank writes of a checkpoint, on the CPU, so that training may change them meanwhile."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    places: dict[str, dict[str, Sequence[int]]] = field(default_factory=dict)
    """By tensor, its whole shape and the offsets of this part."""


def stage(tensors: Mapping[str, Tensor], rank: int, own: bool = False) -> Staged:
    """Copy this rank's parts to the CPU; of parts that several ranks hold, one of them keeps a copy.

    Args:
        tensors: plain ones or DTensors.
        rank: this one.
        own: the tensors are whole, on the CPU, and this rank's alone: none is left out, and none copied.

    Raises what `own_part` raises.
    """
    staged = Staged()
    for name, tensor in tensors.items():
        part = own_part(name, tensor, rank)
        if (own or part.first) and (part.data.numel() or 0 in part.shape):
            staged.tensors[name] = part.data.detach().to("cpu", copy=not own).contiguous()
            staged.places[name] = {"shape": part.shape, "offsets": part.box.offsets}
    return staged


def state_bytes(state: Mapping[str, Any]) -> bytes:
    """The content of `state.pt`."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    return content.getvalue()


def write_part(folder: Path, rank: int, staged: Staged, state: bytes | None = None) -> int:
    """Write a rank's file, and one rank the state, down to the disk; returns the bytes of the file."""
    path = folder / rank_file(rank)
    save_file(staged.tensors, path, metadata={HEADER: json.dumps(staged.places)})
    to_disk(path)
    if state is not None:
        (folder / STATE).write_bytes(state)
        to_disk(folder / STATE)
    return path.stat().st_size


def write_complete(folder: Path, sizes: Sequence[int]) -> None:
    """Write `complete.json`, given the bytes of every rank's file.

    Raises ValueError where a file is not seen here as its rank has written it.
    """
    files = {rank_file(rank): size for rank, size in enumerate(sizes)}
    unseen, patience = list(files), time.monotonic() + SECONDS_TO_APPEAR
    while unseen := [name for name in unseen if _size(folder / name) != files[name]]:
        if time.monotonic() > patience:
            raise ValueError(
                f"rank 0 does not see {first_of(unseen)} in {folder}, which other ranks have written\n"
                "checkpoints need a run.folder on a file system that all nodes share"
            )
        time.sleep(0.2)
    files[STATE] = (folder / STATE).stat().st_size
    content = {"format": FORMAT, "world_size": len(sizes), "files": files}
    write_atomically(folder / COMPLETE, json.dumps(content, indent=1))
    to_disk(folder / COMPLETE)
    to_disk(folder)


# ------------------------------------------------------------------ found again


def read_complete(folder: Path) -> dict[str, int]:
    """The files of a folder and their bytes. Raises ValueError for a folder that is not complete."""
    if not (folder / COMPLETE).is_file():
        raise ValueError(f"{folder} is no complete checkpoint: it has no {COMPLETE}, which is written last")
    content = read_json(folder / COMPLETE)
    version, files = content.get("format"), content.get("files")
    if version != FORMAT:
        raise ValueError(f"{folder} is a checkpoint of format {version!r}; this v1lit reads {FORMAT}")
    if not isinstance(files, dict) or STATE not in files or len(files) != content.get("world_size", -2) + 1:
        raise ValueError(f"{folder / COMPLETE} does not list {STATE} and a file of every rank")
    for name, size in files.items():
        if name != STATE and not RANK_FILE.fullmatch(name):
            raise ValueError(f"{folder / COMPLETE} names {name!r}, which is no file of a checkpoint")
        if _size(folder / name) != size:
            raise ValueError(f"{folder} is damaged: {name} has {_size(folder / name)} bytes of {size}")
    return files


def is_complete(path: Path) -> bool:
    """Whether there is a whole checkpoint, a folder or a single file; only its frame is looked at."""
    if not path.is_dir():
        return zipfile.is_zipfile(path)
    try:
        return bool(read_complete(path))
    except (ValueError, WeightsUnavailable, OSError, TypeError):
        return False


def newest_of(path: Path) -> Path | None:
    """The newest complete checkpoint of this name: one that was about to take the place, or what is there.

    Changes nothing; all ranks may ask at once.
    """
    waiting = [
        hidden
        for hidden in path.parent.glob(f".{path.name}.*.tmp")
        if hidden != beside(path, OLD) and hidden.is_dir() and is_complete(hidden)
    ]
    ordered = sorted(waiting, key=lambda folder: (folder / COMPLETE).stat().st_mtime, reverse=True)
    return next((found for found in [*ordered, path, beside(path, OLD)] if is_complete(found)), None)


def clear(path: Path) -> Path:
    """Make room for a new checkpoint: finish what a crash left half-renamed, and remove other leftovers.

    Returns the hidden path beside to write to. For one process, with no other writing there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    newest = newest_of(path)
    if newest is not None and newest != path:
        put_in_place(newest, path)
    remove_leftovers(path.parent, path.name)
    return beside(path)


def _size(path: Path) -> int:
    """Bytes of a file; -1 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
