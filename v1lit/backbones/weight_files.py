"""The weight files of a checkpoint folder, looked at without loading a weight and without trusting a byte.

Only safetensors are read. A pickled file is never opened, whatever its name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v1lit.errors import first_of, one_line

LONGEST_JSON = 64 * 2**20
LONGEST_HEADER = 100 * 2**20
"""Bytes; the limit of the safetensors format itself."""
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LFS = b"version https://git-lfs.github.com/spec/"
BITS = {
    **dict.fromkeys(("F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
    "F4": 4,
}
NOT_WHOLE = "is no whole safetensors file"
PLAIN = ("F64", "F32", "F16", "BF16")


class WeightsUnavailable(ValueError):  # noqa: N818 - it names a state, like FileNotFound
    """A checkpoint is out of reach or damaged: no connection, no access, no such folder, a file cut off."""


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says about one tensor."""

    dtype: str
    shape: tuple[int, ...]


def refuse_lfs_pointer(path: Path) -> None:
    """Raise WeightsUnavailable if git has left only its note of where the file lies."""
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise WeightsUnavailable(
                f"{path} is a git-lfs pointer, a note of three lines in place of the file\n"
                f"fetch the files with: cd {path.parent} && git lfs install && git lfs pull"
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping. Raises WeightsUnavailable if it is none, or far too large."""
    refuse_lfs_pointer(path)
    if path.stat().st_size > LONGEST_JSON:
        raise WeightsUnavailable(f"{path} has {path.stat().st_size} bytes, which no such file needs")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise WeightsUnavailable(
            f"{path} is not valid JSON: {one_line(error)}\nget the file again from where the folder came from"
        ) from None
    if not isinstance(content, dict):
        raise WeightsUnavailable(f"{path} must hold a mapping, not {type(content).__name__}")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the single one, or those that its index names.

    Raises WeightsUnavailable, saying what is there instead, where there are none, where shards are
    missing, and where two sets of weights lie side by side.
    """
    single, index = folder / SINGLE, folder / INDEX
    if not index.is_file():
        if not single.is_file():
            raise WeightsUnavailable(_no_safetensors(folder))
        return [single]
    names = sorted({str(name) for name in _weight_map(index).values()})
    if single.is_file() and names != [SINGLE]:
        raise WeightsUnavailable(
            f"{folder} holds two sets of weights: {SINGLE}, and {len(names)} shards named by {INDEX}\n"
            f"move away the ones that are not meant, {SINGLE} or the shards with their index"
        )
    strange = [name for name in names if Path(name).name != name]
    if strange:
        raise WeightsUnavailable(f"{index} names {strange[0]!r}, which is no file of this folder")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise WeightsUnavailable(
            f"{folder} lacks {len(missing)} of the {len(names)} shards that {INDEX} names: "
            f"{first_of(missing)}\n"
            f"get the missing files as well, for instance with: {download(folder)}"
        )
    return [folder / name for name in names]


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a folder by name, from the headers of its files; every file is checked to be whole.

    Raises WeightsUnavailable as `weight_files`, and for a file that is cut off, damaged or in two minds
    with the index.
    """
    tensors: dict[str, TensorInfo] = {}
    owners: dict[str, str] = {}
    for path in weight_files(folder):
        for name, info in read_header(path).items():
            if name in tensors:
                raise WeightsUnavailable(f"{folder}: tensor {name} is in both {owners[name]} and {path.name}")
            tensors[name], owners[name] = info, path.name
    if (folder / INDEX).is_file():
        claimed = _weight_map(folder / INDEX)
        wrong = sorted(name for name, owner in claimed.items() if owners.get(name) != owner)
        if wrong:
            raise WeightsUnavailable(
                f"{folder / INDEX} does not fit the files: {claimed[wrong[0]]} does not hold {wrong[0]}"
                f" ({len(wrong)} such tensors)\nget index and shards from one place: {download(folder)}"
            )
    return tensors


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file. Raises WeightsUnavailable if it is cut off or none."""
    refuse_lfs_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > LONGEST_HEADER:
            raise _unusable(path, f"{NOT_WHOLE}: it does not begin as one")
        if length > size - 8:
            raise _unusable(path, f"is cut off: it has {size} bytes of at least {8 + length}")
        raw = file.read(length)
    try:
        content = json.loads(raw)
        entries = {name: entry for name, entry in content.items() if name != "__metadata__"}
        tensors = {name: _tensor(entry) for name, entry in entries.items()}
        ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise _unusable(path, f"{NOT_WHOLE}: its header cannot be read") from None
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        raise _unusable(path, f"is cut off: it has {size} bytes of {whole}")
    if size > whole:
        raise _unusable(path, f"{NOT_WHOLE}: {size - whole} bytes follow its last tensor")
    return tensors


def download(folder: Path, *files: str, hub_id: str = "HUB_ID") -> str:
    """The command that fetches a checkpoint, or these files of it, into a folder."""
    return " ".join(["hf download", hub_id, *files, "--local-dir", str(folder)])


def _tensor(entry: Mapping[str, Any]) -> TensorInfo:
    """An entry of a header, with its size in bytes checked. Raises what a wrong one raises."""
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise ValueError("sizes are numbers")
    dtype = str(entry["dtype"])
    if dtype in BITS and math.prod(shape) * BITS[dtype] != (stop - start) * 8:
        raise ValueError("the bytes do not fit the shape")
    return TensorInfo(dtype, shape)


def _weight_map(index: Path) -> dict[str, str]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise WeightsUnavailable(f"{index} has no weight_map of tensors and files")
    return files


def _unusable(path: Path, why: str) -> WeightsUnavailable:
    return WeightsUnavailable(
        f"{path} {why}\ncopy or download it again, for instance with: {download(path.parent, path.name)}"
    )


def _no_safetensors(folder: Path) -> str:
    """Why a folder has no weights that are read, from the names of what it has, and what to do."""
    names = sorted(entry.name for entry in folder.iterdir())
    shards = [name for name in names if name.startswith("model-") and name.endswith(".safetensors")]
    pickled = [
        name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")) and _is_weights(name)
    ]
    gguf = [name for name in names if name.endswith(".gguf")]
    other = [name for name in names if name.endswith(".safetensors")]
    if shards:
        return (
            f"{folder} has shards ({first_of(shards)}), but not {INDEX}, which says what is in which\n"
            f"get that file as well, for instance with: {download(folder, INDEX)}"
        )
    if any(name.startswith("pytorch_model") for name in pickled):
        return (
            f"{folder} has pickled weights only ({first_of(pickled)}), which could run code, "
            f"and no {SINGLE}\n"
            'if you trust them, write safetensors beside them: python -c "from transformers import '
            f"AutoModelForImageTextToText as M; M.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    if len(pickled) == 1 and pickled[0].startswith("model.") and not (gguf or other):
        path = folder / pickled[0]
        return (
            f"{folder} has pickled weights only ({pickled[0]}), and no {SINGLE}\n"
            'if named as in transformers, write safetensors beside them: python -c "from torch import '
            "load; from safetensors.torch import save_file as save; save({k: v.clone() for k, v in "
            f"load('{path}', 'cpu', weights_only=True).items()}}, '{folder / SINGLE}', {{'format': 'pt'}})\""
        )
    if pickled or gguf or other:
        return (
            f"{folder} has weights as {first_of([*gguf, *pickled, *other])} only; v1lit reads {SINGLE}, "
            f"or shards and their index\nget the checkpoint in the transformers layout: {download(folder)}"
        )
    return (
        f"{folder} has a config, but no weights: {SINGLE} is missing\n"
        f"get them, for instance with: {download(folder)}"
    )


def _is_weights(name: str) -> bool:
    """Whether a pickled file may be a model's weights, by its name; trainers leave others beside them."""
    return not name.startswith(("training_args", "optimizer", "scheduler", "rng_state", "adapter_", "scaler"))
