"""`load`: a trained model from a folder or the hub, as a `Predictor`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from v1lit.backbones.adapters.folder import adapter_folder
from v1lit.backbones.folder import check_exported
from v1lit.backbones.hub import hub_errors, local_folder, looks_local
from v1lit.backbones.processor import Processor
from v1lit.backbones.registry import get_backbone
from v1lit.errors import OptionError
from v1lit.inference.decoding import Decoding
from v1lit.inference.predictor import Predictor
from v1lit.paths import expand_path
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.model_config import PointAndCopyConfig

WHOLE = ("pointer_head", "look", "lm_head")
"""What is not packed, beside the parts `vision` and `projector`: small, or its numbers are compared."""
DeviceMap = str | dict[str, Any]
"""`auto`, or the device of every part by name: a GPU's number, `cpu` or `disk`."""


def load(
    folder: str | Path,
    dtype: str = "auto",
    device: str = "auto",
    *,
    bits: int | None = None,
    device_map: DeviceMap | None = None,
    static_cache: bool = False,
    compiled: bool = False,
    **options: Any,
) -> Predictor:
    """Open an exported model folder, or one on the Hugging Face hub.

    That of an adapter is opened with its backbone, from where it lay or, with `base`, lies now.

    Args:
        folder: a local folder, or a hub id, of which what is not in the cache is fetched.
        dtype: type of the weights, such as `bfloat16`; `auto` is that in which they are stored.
        device: `cuda`, `mps` or `cpu`; `auto` is the fastest there is.
        bits: 8 or 4 to pack the decoder's weights as they are read, by bitsandbytes.
        device_map: in place of `device`, weights on several; needs accelerate.
        static_cache: generate with a KV cache of the final size from the start.
        compiled: generate with steps that torch has compiled; the first answers take longer.
        **options: of transformers' `from_pretrained`.

    Raises ValueError for any other folder, saying what it is, for files that are missing or damaged, and for
    options that exclude each other or need a package that is not there.
    """
    path = local_export(folder)
    adapted = adapter_folder(path) is not None
    if not adapted:
        check_exported(path)
    elif bits is not None or device_map is not None:
        name, given = ("bits", bits) if bits is not None else ("device_map", device_map)
        why = "an adapter is opened whole beside its backbone; merge it first: v1lit export --merge"
        raise OptionError(name, given, why)
    placed: dict[str, Any] = {}
    if device_map is not None:
        if device != "auto":
            raise OptionError("device", device, "device_map says where weights go: give one of the two")
        _need("accelerate", "device_map", device_map)
        placed["device_map"] = device_map
    if bits is not None:
        placed = {"device_map": {"": str(choose_device(device))}, **placed, **_packed(bits, path)}
    model = PointAndCopyModel.from_pretrained(path, dtype=dtype, **placed, **options)
    if not placed:
        model.to(choose_device(device))
    return Predictor(model, Processor.from_pretrained(path), Decoding(static_cache, compiled))


def choose_device(wanted: str) -> torch.device:
    """The device of that name, for `auto` the fastest there is. Raises ValueError where there is none."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [name for name, is_there in available.items() if is_there]
    if wanted == "auto":
        return torch.device(usable[0])
    if wanted.partition(":")[0] not in usable:
        raise ValueError(f"PyTorch finds no {wanted} device on this machine; found: {', '.join(usable)}")
    return torch.device(wanted)


def local_export(folder: str | Path) -> Path:
    """The folder; of a hub id that in the cache, into which what is missing is fetched.

    Raises WeightsUnavailable where the hub has none or is out of reach.
    """
    folder = expand_path(folder)
    if looks_local(folder):
        return Path(folder)
    with hub_errors(folder, "Name the folder of an exported model, such as runs/NAME/model."):
        return local_folder(folder)


def _packed(bits: int, folder: Path) -> dict[str, Any]:
    if bits not in (4, 8):
        raise OptionError("bits", bits, "weights are packed into 8 or 4 bits; leave it out for whole ones")
    _need("bitsandbytes", "bits", bits)
    _need("accelerate", "bits", bits)
    from transformers import BitsAndBytesConfig

    packing = {"load_in_8bit": True} if bits == 8 else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    parts = get_backbone(PointAndCopyConfig.from_pretrained(folder).family).parts
    images = [f"backbone.{path}" for part in ("vision", "projector") for path in parts[part]]
    config = BitsAndBytesConfig(
        **packing, llm_int8_skip_modules=[*WHOLE, *images], bnb_4bit_compute_dtype=torch.bfloat16
    )
    return {"quantization_config": config}


def _need(package: str, option: str, given: object) -> None:
    if find_spec(package) is None:
        raise OptionError(option, given, f"that needs {package}: pip install {package}")
