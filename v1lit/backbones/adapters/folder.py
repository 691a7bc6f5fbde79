"""A folder with an adapter of ours, as far as it says what it is; its weights are read elsewhere.

It has the two files that peft writes, with the adapters and the parts of the backbone that are trained whole;
beside them a file with the pointer heads, one that says what they belong to, and the processor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from v1lit.backbones.adapters.config import AdapterConfig
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.folder import ADAPTER
from v1lit.backbones.weight_files import WeightsUnavailable, read_json
from v1lit.errors import OptionError, one_line

OURS = "v1lit_adapter.json"
WEIGHTS, HEADS = "adapter_model.safetensors", "pointer_heads.safetensors"
FORMAT = 1
NOT_COMPARED = ("dropout",)
"""Options of an adapter with which training on may differ."""


@dataclass(frozen=True)
class Base:
    """The backbone that an adapter belongs to."""

    name: str
    """Its family."""
    weights: str
    """As in `BackboneConfig`: where it lay."""
    tiny: dict[str, Any]
    dtype: str
    """As in `BackboneConfig`: in which it computed."""
    seed: int
    """With which a tiny version was drawn."""
    fingerprint: str
    """Of its weights."""

    def config(self, like: BackboneConfig) -> BackboneConfig:
        """The options that load it, the others as they are in `like`."""
        return replace(like, name=self.name, weights=self.weights, tiny=dict(self.tiny))


@dataclass(frozen=True)
class AdapterFolder:
    """What a folder says about its adapter."""

    path: Path
    adapter: AdapterConfig
    base: Base
    config: dict[str, Any]
    """Of the whole model, as its `config.json` would be."""

    @property
    def where_it_is_named(self) -> str:
        """What to do where the backbone is another one, or elsewhere."""
        return f"say where its backbone lies: base_model_name_or_path in {self.path / ADAPTER}"


def adapter_folder(weights: str | Path, base: str | None = None) -> AdapterFolder | None:
    """What lies at a path, if it is an adapter that v1lit wrote; None for everything else.

    base: where the backbone is now, in place of what the folder says. Raises WeightsUnavailable for a
    damaged file, ValueError for one that contradicts another.
    """
    path = Path(weights)
    if not (path / OURS).is_file():
        return None
    content, of_peft = read_json(path / OURS), read_json(_needed(path / ADAPTER))
    if content.get("format") != FORMAT:
        raise ValueError(f"{path / OURS} has format {content.get('format')!r}; this v1lit reads {FORMAT}")
    try:
        adapter = AdapterConfig(**content["adapter"])
        found = Base(**content["base"])
        config = dict(content["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsUnavailable(f"{path / OURS} does not describe an adapter: {one_line(error)}") from error
    if found.weights != "tiny":
        found = replace(found, weights=str(of_peft.get("base_model_name_or_path") or found.weights))
    _refuse_contradiction(path, adapter, of_peft)
    return AdapterFolder(path, adapter, found if base is None else replace(found, weights=base), config)


def base_config(backbone: BackboneConfig) -> BackboneConfig:
    """The same backbone; where `weights` is an adapter's folder, the one that the adapter belongs to.

    Raises what `adapter_folder` raises, and OptionError for an adapter of another family.
    """
    found = adapter_folder(backbone.weights)
    if found is None:
        return backbone
    own = found.base.name
    if own != backbone.name:
        why = f"{backbone.weights} is an adapter of {own}\nuse --model.backbone.name={own}"
        raise OptionError("name", backbone.name, why, "model.backbone")
    return found.base.config(backbone)


@contextmanager
def naming_base(found: AdapterFolder | None) -> Iterator[None]:
    """Say of a backbone that is out of reach where an adapter names it."""
    try:
        yield
    except WeightsUnavailable as error:
        if found is None:
            raise
        what = str(error).partition("\n")[0].rstrip(".")
        raise WeightsUnavailable(
            f"{what}; the adapter in {found.path} belongs to it\n{found.where_it_is_named}"
        ) from error


def resolved(
    backbone: BackboneConfig, adapter: AdapterConfig
) -> tuple[BackboneConfig, AdapterConfig, AdapterFolder | None]:
    """What a recipe's backbone and adapter come to: backbone, adapter, and the folder to begin from.

    Raises what `base_config` and `continued` raise.
    """
    found = adapter_folder(backbone.weights)
    return base_config(backbone), continued(found, adapter), found


def continued(found: AdapterFolder | None, adapter: AdapterConfig) -> AdapterConfig:
    """The adapter of a run: that of a recipe, or of the folder that its backbone's `weights` name.

    Raises OptionError where the recipe has another one than the folder.
    """
    if found is None or not adapter:
        return adapter if found is None else found.adapter
    given, has = asdict(adapter), asdict(found.adapter)
    for name in given:
        if name not in NOT_COMPARED and given[name] != has[name]:
            why = f"the adapter in {found.path} has {has[name]!r}\ntake that, or leave model.adapter out"
            raise OptionError(name, given[name], why, f"model.{AdapterConfig.GROUP}")
    return adapter


def describe(adapter: AdapterConfig, base: Base, config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the file that says what an adapter belongs to."""
    return {"format": FORMAT, "adapter": asdict(adapter), "base": asdict(base), "config": dict(config)}


def _needed(path: Path) -> Path:
    if not path.is_file():
        raise WeightsUnavailable(
            f"{path.parent} is an adapter without its {path.name}\ncopy the whole folder"
        )
    return path


def _refuse_contradiction(path: Path, adapter: AdapterConfig, of_peft: Mapping[str, Any]) -> None:
    said = {"r": adapter.rank, "lora_alpha": adapter.alpha, "use_rslora": adapter.rslora}
    said["use_dora"] = adapter.kind == "dora"
    for key, value in said.items():
        if of_peft.get(key) != value:
            raise ValueError(
                f"{path}: {key} is {of_peft.get(key)!r} in {ADAPTER}, but {OURS} says {value!r}\n"
                "take both files from one place"
            )
