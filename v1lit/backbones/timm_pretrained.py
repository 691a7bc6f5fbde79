"""Pretrained towers of timm: by name from where timm has them, or from a local safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v1lit.backbones.timm_tower import Tower, check_tower_name, create_tower, import_timm
from v1lit.backbones.weight_files import SINGLE, WeightsUnavailable, read_header, read_json
from v1lit.errors import OptionError, one_line

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TowerSource:
    """A tower, and where its weights are."""

    tower: Tower
    file: Path | None
    """A safetensors file; None for what timm fetches."""


def find_tower(
    given: str, architecture: str | None, arguments: Mapping[str, Any], layers: Sequence[int]
) -> TowerSource:
    """The tower that is meant by a name, a file or a folder; loads nothing.

    Raises OptionError for a name that timm does not have and a file whose architecture nobody says,
    WeightsUnavailable for a file that is damaged.
    """
    path = Path(given)
    if not path.exists():
        if given.endswith(".safetensors") or given.startswith((".", "/")):
            raise WeightsUnavailable(f"there is no file {given}")
        if architecture is not None:
            why = "it names a file's architecture; a tower that is given by name says its own"
            raise OptionError("architecture", architecture, why)
        return TowerSource(Tower.of(given, arguments, layers), None)
    file = path / SINGLE if path.is_dir() else path
    if not file.is_file() or file.suffix != ".safetensors":
        raise WeightsUnavailable(
            f"{file} is {'no safetensors file' if file.is_file() else 'missing'}; pickled weights, which "
            "could run code, are not read\nwrite them anew: safetensors.torch.save_file(weights, FILE)"
        )
    beside = file.parent / "config.json"
    stated = read_json(beside).get("architecture") if beside.is_file() else None
    name = architecture or stated
    if name is None:
        raise OptionError("architecture", None, f"nothing says what {file} is; give timm's name of it")
    return TowerSource(Tower.of(check_tower_name(name), arguments, layers), file)


def pretrained_tower(source: TowerSource) -> tuple[nn.Module, list[str]]:
    """The tower with its weights, and the modules of theirs that it does not have: classifier and pooling.

    timm converts them from the layouts that it knows. Raises ValueError for weights that do not fit, and
    WeightsUnavailable for those that cannot be fetched.
    """
    timm, tower = import_timm(), source.tower
    options: dict[str, Any] = json.loads(tower.arguments)
    if source.file is not None:
        # Told how many classes the file has, timm accounts for every weight in it.
        classes = _classes(source)
        options["pretrained_cfg_overlay"] = {"file": str(source.file), "num_classes": classes}
        options["num_classes"] = classes
    try:
        whole: nn.Module = timm.create_model(tower.name, pretrained=True, **options)
    except Exception as error:  # every layout has its own
        if source.file is not None:
            raise ValueError(f"{source.file} does not fit {tower.name}: {one_line(error)}") from error
        raise WeightsUnavailable(
            f"cannot get the weights of {tower.name}: {one_line(error)}\n"
            f"give a file that was fetched before: --tower FILE --architecture {tower.name}"
        ) from error
    made, state = create_tower(tower), whole.state_dict()
    own = made.state_dict()
    made.load_state_dict({name: state[name] for name in own})
    left = sorted({name.rpartition(".")[0].partition(".")[0] for name in state if name not in own})
    return made, left


def _classes(source: TowerSource) -> int:
    """How many classes the classifier in a file has; 0 without one."""
    assert source.file is not None
    settings: Any = import_timm().get_pretrained_cfg(source.tower.name)
    names = getattr(settings, "classifier", None) or ()
    header = read_header(source.file)
    for name in (names,) if isinstance(names, str) else names:
        if (entry := header.get(f"{name}.weight")) is not None:
            return entry.shape[0]
    return 0
