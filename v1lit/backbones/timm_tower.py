"""Vision towers of timm: made by name, looked at once without weights, and run on a batch of images.

What a tower is, is asked of the tower itself on the `meta` device, where running it costs no arithmetic: the
grid that it makes of an image, which of its weights features depend on, and how many operations it takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from v1lit.errors import OptionError, did_you_mean, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

Rounding = Literal["floor", "ceil", "exact"]
"""What becomes of pixels behind the last whole patch: no token sees them, one more does, there are none."""
RESERVED = ("checkpoint_path", "cache_dir", "features_only", "num_classes", "pretrained", "scriptable")
"""Arguments of `timm.create_model` that a config cannot have: they fetch files, or make another thing."""
INSTALL = "timm is not installed, which has the vision towers of timm_lm: pip install 'v1lit[timm]'"
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
"""Pillow's numbers for timm's names of filters."""


@dataclass(frozen=True)
class Tower:
    """Which tower: what `config.json` says of it. Hashable, so that what was found out of it is kept."""

    name: str
    """Of an architecture in timm, such as `vit_base_patch16_siglip_224.v2_webli`."""
    arguments: str
    """Further arguments of `timm.create_model`, as JSON."""
    layers: tuple[int, ...]
    """Layers or stages whose features stand side by side, in order; negative ones count from the end."""

    @classmethod
    def of(cls, name: str, arguments: Mapping[str, Any], layers: Sequence[int]) -> Tower:
        """Raises OptionError for what is no name of an architecture, or no argument for one."""
        check_tower_name(name)
        wrong = [key for key in arguments if key in RESERVED or key.startswith("pretrained")]
        if wrong:
            why = "it takes no files, and makes no classes; give arguments of the architecture"
            raise OptionError("tower_arguments", wrong[0], why)
        if not layers or not all(type(layer) is int for layer in layers):
            raise OptionError("feature_layers", list(layers), "give numbers of layers, such as [-2, -1]")
        return cls(name, json.dumps(dict(arguments), sort_keys=True), tuple(layers))


@dataclass(frozen=True)
class TowerFacts:
    """What decides how images become features."""

    channels: int
    """Width of a patch's features, of all layers together."""
    patch_size: int
    """Pixels of a patch's side, in the features."""
    rounding: Rounding
    """What becomes of a side that is no multiple of `patch_size`."""
    image_size: tuple[int, int]
    """Height and width that the tower was made for, or is published with."""
    naflex: bool
    """Whether it takes images of any aspect, as rows of patches."""
    norm: bool
    """Whether its last norm is applied to features."""
    unused: frozenset[str]
    """Parameters that no feature depends on."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of the pixels, as the tower was trained with, in shares of white."""
    resample: int
    """Pillow's filter, likewise."""


def import_timm() -> Any:
    """The module timm. Raises ValueError, with the command that installs it, where it is missing."""
    try:
        import timm
    except ImportError:
        raise ValueError(INSTALL) from None
    return timm


def check_tower_name(name: object) -> str:
    """The name. Raises OptionError for one that timm does not have, or would fetch from somewhere."""
    timm = import_timm()
    if not isinstance(name, str) or not timm.is_model(name) or ":" in name:
        near = did_you_mean(str(name).partition(".")[0], timm.list_models())
        raise OptionError("tower", name, f"timm has no such architecture{near}")
    return name


def create_tower(tower: Tower) -> nn.Module:
    """A fresh tower without classifier and pooling; weights are random, or on the device of the context.

    Without dropout and stochastic depth, so that an image gives the same features wherever it stands. Raises
    OptionError for arguments that the architecture does not take.
    """
    timm = import_timm()
    arguments = json.loads(tower.arguments)
    try:
        made: nn.Module = timm.create_model(tower.name, num_classes=0, **arguments)
    except Exception as error:  # every architecture has its own
        raise OptionError("tower_arguments", arguments, f"{tower.name}: {one_line(error)}") from error
    if not hasattr(made, "forward_intermediates"):
        raise OptionError("tower", tower.name, "it has no forward_intermediates, which gives features")
    if getattr(made, "attn_pool", None) is not None:
        vars(made)["_modules"]["attn_pool"] = None  # of SigLIP: one vector of an image, which nobody reads
    for path, module in made.named_modules():
        if type(module).__name__.startswith(("DropPath", "Dropout")):
            for rate in ("drop_prob", "p"):
                if hasattr(module, rate):
                    setattr(module, rate, 0.0)
        names = [name for name in module._non_persistent_buffers_set if module._buffers[name] is not None]
        if names and not hasattr(module, "init_non_persistent_buffers"):
            why = f"{path} computes {names[0]} in a way that is lost when weights are loaded"
            raise OptionError("tower", tower.name, why)
    return made.eval()


def run_tower(tower: nn.Module, pixels: Tensor | dict[str, Tensor], layers: Sequence[int], norm: bool) -> Any:
    """Features of a batch, layers side by side: `[images, channels, rows, columns]`.

    Of a NaFlex tower's patches (`patches`, `patch_coord`, `patch_valid`) `[images, patches, channels]`.
    """
    import torch

    batched = isinstance(pixels, dict)
    features: Any = tower
    taken = features.forward_intermediates(
        pixels,
        indices=list(layers),
        norm=norm,
        stop_early=True,
        intermediates_only=True,
        output_fmt="NLC" if batched else "NCHW",
    )
    return torch.cat(taken, dim=-1 if batched else 1) if len(taken) > 1 else taken[0]


@lru_cache
def tower_facts(tower: Tower) -> TowerFacts:
    """What a tower is. Raises OptionError for one whose features make no even grid."""
    from timm.data import resolve_model_data_config

    with _learning():
        made: Any = _on_meta(tower)
    data = resolve_model_data_config(made)
    stated = getattr(getattr(made, "patch_embed", None), "img_size", None)
    height, width = stated or data["input_size"][1:]
    naflex = type(made).__name__ == "NaFlexVit"
    info = list(made.feature_info)
    try:
        used = [info[layer] for layer in tower.layers]
    except IndexError:
        why = f"{tower.name} has {len(info)} layers with features"
        raise OptionError("feature_layers", list(tower.layers), why) from None
    sizes = sorted({int(entry["reduction"]) for entry in used})
    if len(sizes) > 1:
        why = f"these layers of {tower.name} have patches of {' and '.join(map(str, sizes))} pixels"
        raise OptionError("feature_layers", list(tower.layers), why)
    (patch,) = sizes
    if naflex:
        height, width = 2 * patch, 2 * patch
    with _learning():
        features, norm = _features(made, tower, (height, width))
        features.sum().backward()
    rounding = _rounding(made, tower, norm, (height, width), patch, features.shape[-2:])
    return TowerFacts(
        channels=features.shape[1],
        patch_size=patch,
        rounding="exact" if naflex else rounding,
        image_size=(height, width),
        naflex=naflex,
        norm=norm,
        unused=frozenset(name for name, weight in made.named_parameters() if weight.grad is None),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        resample=RESAMPLE.get(str(data["interpolation"]), RESAMPLE["bicubic"]),
    )


@lru_cache
def tower_grid(tower: Tower, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of features of an image of this height and width, from the tower itself.

    Raises OptionError for a size that it does not take.
    """
    features, _ = _features(_on_meta(tower), tower, size)
    return int(features.shape[-2]), int(features.shape[-1])


def unused_modules(made: nn.Module, unused: frozenset[str]) -> list[nn.Module]:
    """The modules of a tower with weights of which no feature depends on any."""
    found = []
    for path, module in made.named_modules():
        names = [f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters()]
        if names and unused.issuperset(names):
            found.append(module)
    return found


@contextmanager
def _learning() -> Iterator[None]:
    """With gradients: whoever asks first for a tower's facts may be about to answer, without any."""
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        yield


def _on_meta(tower: Tower) -> nn.Module:
    import torch

    with torch.device("meta"):
        return create_tower(tower)


def _features(made: Any, tower: Tower, size: tuple[int, int]) -> tuple[Tensor, bool]:
    """Features of a blank image on `meta`, and whether the last norm can be applied to them."""
    import torch

    image = torch.empty(1, 3, *size, device="meta")
    for norm in (True, False):
        try:
            return run_tower(made, image, tower.layers, norm), norm
        except AssertionError as error:
            reason = one_line(error)
            if norm and "normalization of features" in reason:
                continue
            break
        except RuntimeError as error:
            reason = one_line(error)
            break
    height, width = size
    raise OptionError("size", {"height": height, "width": width}, f"{tower.name}: {reason}")


def _rounding(
    made: Any, tower: Tower, norm: bool, size: tuple[int, int], patch: int, grid: Sequence[int]
) -> Rounding:
    """What the tower does with a side that is no multiple of the patch; raises where there is no grid."""
    import torch

    for one, side in ((grid, size), (None, (size[0] + 1, size[1] + 1))):
        if one is None:
            try:
                image = torch.empty(1, 3, *side, device="meta")
                one = run_tower(made, image, tower.layers, norm).shape[-2:]
            except (AssertionError, RuntimeError):
                return "exact"
        if all(rows == pixels // patch for rows, pixels in zip(one, side, strict=True)):
            if any(pixels % patch for pixels in side):
                return "floor"
        elif all(rows == -(-pixels // patch) for rows, pixels in zip(one, side, strict=True)):
            return "ceil"
        else:
            why = (
                f"an image of {side[0]}x{side[1]} makes {one[0]}x{one[1]} features, no grid of {patch} pixels"
            )
            raise OptionError("tower", tower.name, why)
    return "exact"
