"""A `PointAndCopyModel` with adapters: what of it is trained, written to a folder alone, and read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from v1lit.backbones.adapters.config import AdapterConfig
from v1lit.backbones.adapters.fingerprint import fingerprint
from v1lit.backbones.adapters.folder import (
    HEADS,
    OURS,
    WEIGHTS,
    AdapterFolder,
    Base,
    describe,
    naming_base,
)
from v1lit.backbones.adapters.inject import NAME, Injected, start
from v1lit.backbones.adapters.layers import whole_modules
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.folder import ADAPTER
from v1lit.backbones.load import SHOWN, load_backbone
from v1lit.backbones.weight_files import WeightsUnavailable, read_header
from v1lit.errors import OptionError, first_of
from v1lit.files import write_atomically
from v1lit.pointer.config import PointerConfig
from v1lit.revisit.config import RevisitConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

BACKBONE = "backbone."
OF_PEFT = "base_model.model."
"""Begins the names in peft's file."""
OF_THE_MODEL = ("tie_heads", "width", "key_source", "normalize", "gate")
"""Options of the pointer that decide what its weights mean."""
NOT_COMPARED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
"""Keys of a config that say nothing about the weights' meaning."""


class Adapted(Protocol):
    """What of a `PointAndCopyBase` counts here."""

    adapter: AdapterConfig
    base: Base | None
    injected: Injected | None
    backbone: PreTrainedModel

    @property
    def config(self) -> Any: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def pointer_head(self) -> Any: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


def kept_names(model: Adapted) -> list[str]:
    """The parameters of a model with adapters that are trained: all that is saved of it."""
    assert model.injected is not None
    own = [name for name, _ in model.named_parameters() if not name.startswith(BACKBONE)]
    return [*(BACKBONE + name for name in model.injected.kept), *own]


def base_of(backbone: BackboneConfig, seed: int) -> Base:
    """What an adapter on this backbone writes down about it."""
    digits = fingerprint(backbone, seed)
    return Base(backbone.name, backbone.weights, dict(backbone.tiny), backbone.dtype, seed, digits)


def load_base(
    backbone: BackboneConfig, empty: bool, adapter: AdapterConfig, found: AdapterFolder | None
) -> PreTrainedModel:
    """The stock model under an adapter: a tiny one is drawn with a seed that can be written down."""
    if backbone.weights != "tiny" or not adapter:
        with naming_base(found):
            return load_backbone(backbone, empty)
    if found is None:
        torch.manual_seed(torch.initial_seed())
        return load_backbone(backbone, empty)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(found.base.seed)
        return load_backbone(backbone, empty)


def check_base(model: Adapted, found: AdapterFolder, base: Base) -> None:
    """Raise ValueError for another backbone than the adapter was trained on, by its config or its weights."""
    other = differing(
        found.config.get("backbone_config", {}), json.loads(model.backbone.config.to_json_string())
    )
    where = f"{found.path} is an adapter of another backbone than {base.weights}"
    if other:
        told = [f"{key} was {was!r} and is {now!r}" for key, (was, now) in other.items()]
        raise ValueError(f"{where}: {first_of(told)}\n{found.where_it_is_named}")
    if base.fingerprint != found.base.fingerprint:
        raise ValueError(f"{where}: the config is the same, but not the weights\n{found.where_it_is_named}")


def check_options(found: AdapterFolder, pointer: PointerConfig, revisit: RevisitConfig) -> None:
    """Raise OptionError where an adapter's pointer heads were trained with other options of the model."""
    trained, given = found.config["pointer"], asdict(pointer)
    for name in OF_THE_MODEL:
        if trained[name] != given[name]:
            why = f"the adapter in {found.path} was trained with {trained[name]!r}"
            raise OptionError(name, given[name], why, "model.pointer")
    trained, given = found.config["revisit"], asdict(revisit)
    for name in ("name", "options"):
        if trained[name] != given[name]:
            why = f"the adapter in {found.path} was trained with {trained[name]!r}"
            raise OptionError(name, given[name], why, "model.revisit")


def started(model: Adapted, seed: int) -> dict[str, Tensor]:
    """The values of fresh adapters, by the model's names."""
    named = start(model.backbone, seed, _whole)
    return {BACKBONE + name: value for name, value in named}


def put(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters of these names."""
    for name, value in values.items():
        model.get_parameter(name).data.copy_(value)


def computing(model: Adapted) -> AbstractContextManager[Any]:
    """Autocast to the backbone's type, where what learns beside it is kept in float32."""
    kind = base_dtype(model)
    if not model.adapter or next(model.pointer_head.parameters()).dtype == kind:
        return nullcontext()
    return torch.autocast(model.device.type, kind)


def base_dtype(model: Adapted) -> torch.dtype:
    """The type of the weights of a backbone that are neither trained nor in 4 bits."""
    every = [p for p in model.backbone.parameters() if p.is_floating_point()]
    return next((p for p in every if not p.requires_grad), every[0]).dtype


# ------------------------------------------------------------------ folders


def save_adapter(model: Adapted, folder: Path) -> None:
    """Write what is trained of a model with adapters, which `read_adapter` reads and peft opens too.

    The weights of the backbone may be on `meta`.
    """
    assert model.injected is not None
    assert model.base is not None
    folder.mkdir(parents=True, exist_ok=True)
    named = dict(model.named_parameters())
    files = _files(model)
    for file, names in files.items():
        tensors = {key: named[own].detach().to("cpu").contiguous() for key, own in names.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    of_peft: Any = model.backbone.peft_config[NAME]
    settings = of_peft.to_dict()
    settings |= {
        "base_model_name_or_path": model.base.weights,
        "modules_to_save": whole_modules(model.injected.whole) or None,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    _write_json(folder / ADAPTER, settings)
    config = json.loads(model.config.to_json_string(use_diff=False))
    content = {name: config[name] for name in ("backbone_config", "family", "pointer", "revisit")}
    _write_json(folder / OURS, describe(model.adapter, model.base, content))


def read_adapter(model: Adapted, found: AdapterFolder) -> dict[str, Tensor]:
    """The values that a folder has for a model with adapters, by the model's names.

    Raises WeightsUnavailable for files that are missing, pickled or damaged, and ValueError for tensors that
    are missing, that nothing of the model takes, or of another shape, by name.
    """
    values: dict[str, Tensor] = {}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for file, names in _files(model).items():
        path = found.path / file
        _refuse_missing(path)
        held = {key: info.shape for key, info in read_header(path).items()}
        problems = {
            "missing": names.keys() - held.keys(),
            "that nothing of the model takes": held.keys() - names.keys(),
            "of another shape": {
                key for key in names.keys() & held.keys() if held[key] != shapes[names[key]]
            },
        }
        for what, keys in problems.items():
            if keys:
                raise ValueError(
                    f"{path} does not fit the model; weights {what} ({len(keys)}): "
                    f"{first_of(sorted(keys), SHOWN)}"
                )
        try:
            values |= {names[key]: tensor for key, tensor in load_file(path).items()}
        except SafetensorError as error:
            raise WeightsUnavailable(f"{path} is damaged: {error}") from error
    return values


def differing(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Keys of two configs with other values, both as JSON; what only one of them has is left out."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in was.keys() & now.keys() - set(NOT_COMPARED):
        if isinstance(was[key], dict) and isinstance(now[key], dict):
            found |= differing(was[key], now[key], f"{prefix}{key}.")
        elif was[key] != now[key] and not key.startswith("_"):
            found[prefix + key] = (was[key], now[key])
    return dict(sorted(found.items()))


def _files(model: Adapted) -> dict[str, dict[str, str]]:
    """By file, what it calls a weight, and the model's own name for it."""
    from peft import get_peft_model_state_dict

    assert model.injected is not None
    own = {name: torch.empty(0, device="meta") for name in model.injected.adapters}
    source = {id(tensor): name for name, tensor in own.items()}
    of_peft = get_peft_model_state_dict(model.backbone, own, NAME, save_embedding_layers=False)
    adapters = {OF_PEFT + key: BACKBONE + source[id(tensor)] for key, tensor in of_peft.items()}
    whole = {OF_PEFT + name: BACKBONE + name for name in model.injected.whole}
    heads = [name for name in kept_names(model) if not name.startswith(BACKBONE)]
    return {WEIGHTS: {**adapters, **whole}, HEADS: {name: name for name in heads}}


def _refuse_missing(path: Path) -> None:
    if path.is_file():
        return
    pickled = path.with_suffix(".bin")
    if pickled.is_file():
        raise WeightsUnavailable(
            f"{pickled} is a pickle, which could run code, and there is no {path.name}\n"
            "save the adapter again with safetensors, where you trust it"
        )
    raise WeightsUnavailable(f"{path.parent} is an adapter without its {path.name}\ncopy the whole folder")


def _whole(tensor: Any) -> Tensor:
    """A whole tensor of one that is divided over ranks, all of which ask."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in content.items()}
    write_atomically(path, json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n")
