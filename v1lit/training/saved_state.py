"""Checkpoints of both kinds: single files of PyTorch, and folders to which every rank writes its part.

A single file has whole tensors, the optimizer's by number; a folder has parts, the optimizer's by name. Both
hold the same otherwise, and either can be loaded where the other was written.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from v1lit.errors import first_of
from v1lit.parallel.boxes import Box, own_part
from v1lit.parallel.checkpoint_folder import CheckpointFolder
from v1lit.training.lightning_internals import (
    is_checkpoint,
    optimizer_states_of,
    weights_of,
    with_tensors,
    without_optimizers,
    without_tensors,
)
from v1lit.training.named_state import Names, parameter_names, to_named, to_numbered

WEIGHTS = "weights."
"""Begins the names of a module's tensors in a folder."""


class LazyWeights(Mapping[str, Tensor]):
    """The state dict of a module in a folder, each tensor read when it is asked for.

    Args:
        folder: that holds them.
        aliases: further names of tensors, and the names under which they are stored.
    """

    def __init__(self, folder: CheckpointFolder, aliases: Mapping[str, str]) -> None:
        self.folder = folder
        stored = [name.removeprefix(WEIGHTS) for name in folder.names if name.startswith(WEIGHTS)]
        self._stored = {**{name: name for name in stored}, **aliases}

    def __getitem__(self, name: str) -> Tensor:
        return self.folder.tensor(WEIGHTS + self._stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def like(self, name: str) -> Tensor:
        """A tensor on `meta` with its shape and type."""
        stored = WEIGHTS + self._stored[name]
        return torch.empty(self.folder.shape(stored), dtype=self.folder.dtype(stored), device="meta")


class HeldTensors:
    """Whole tensors, asked for as those of a `CheckpointFolder`.

    Args:
        tensors: by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor."""
        return tuple(self._tensors[name].shape)

    def tensor(self, name: str) -> Tensor:
        """A tensor."""
        return self._tensors[name]

    def box(self, name: str, box: Box) -> Tensor:
        """A part of a tensor."""
        return self._tensors[name][box.within(Box.whole(self.shape(name)))]


Tensors = CheckpointFolder | HeldTensors

# ------------------------------------------------------------------ read whole


def read_checkpoint(path: str | Path, optimizers: bool = False) -> dict[str, Any]:
    """A checkpoint as data: tensors of a file are mapped, those of a folder read when they are asked for.

    Args:
        path: of the file or folder.
        optimizers: also read the states of optimizers that lie in a folder; a file has them anyway.

    Raises ValueError for a file or folder that is no checkpoint.
    """
    content = _read_folder(Path(path), optimizers) if Path(path).is_dir() else _read_file(path)
    if not is_checkpoint(content):
        raise ValueError(f"{path} is no checkpoint of a training run; give one of a run's checkpoints/")
    return content


def _read_folder(path: Path, optimizers: bool) -> dict[str, Any]:
    folder = CheckpointFolder(path)
    state = _state(folder)
    states = state["optimizers"] if optimizers else None
    if states is not None:
        states = [to_numbered(rest, folder.names, lambda stored, _: folder.tensor(stored)) for rest in states]
    return with_tensors(state["checkpoint"], LazyWeights(folder, state["aliases"]), states)


def _read_file(path: str | Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} is no checkpoint that can be read: {reason}") from error


def _state(folder: CheckpointFolder) -> dict[str, Any]:
    """What a folder holds beside tensors. Raises ValueError where it is none of a training run."""
    state = folder.state
    if set(state) != {"checkpoint", "optimizers", "aliases"}:
        keys = first_of(sorted(map(str, state)))
        raise ValueError(f"{folder.path} is no checkpoint of a training run: its state has {keys}")
    strange = [name for name in state["aliases"].values() if WEIGHTS + name not in folder.names]
    if strange:
        raise ValueError(f"{folder.path} is damaged: it lacks {strange[0]}, which has several names")
    return state


def like(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """A weight of a checkpoint as a tensor on `meta`; reads none."""
    return weights.like(name) if isinstance(weights, LazyWeights) else weights[name].to("meta")


# ------------------------------------------------------------------ by parts


def split(
    checkpoint: Mapping[str, Any], names: Sequence[Names], aliases: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint by name, and the rest: what lies in a folder.

    Args:
        checkpoint: what is saved.
        names: of the parameters of every optimizer, by number.
        aliases: further names of tensors, and the names under which they are stored.
    """
    weights = weights_of(checkpoint)
    tensors = {WEIGHTS + name: tensor for name, tensor in weights.items() if name not in aliases}
    optimizers = None
    if (states := optimizer_states_of(checkpoint)) is not None:
        optimizers = []
        for state, own in zip(states, names, strict=True):
            named, rest = to_named(state, own)
            tensors |= named
            optimizers.append(rest)
    rest = without_tensors(checkpoint)
    return tensors, {"checkpoint": rest, "optimizers": optimizers, "aliases": dict(aliases)}


def load_parts(
    path: Path, module: nn.Module, optimizers: Sequence[Optimizer], strict: bool = True
) -> dict[str, Any]:
    """Read into a module and its optimizers what this rank has of them; returns the rest of the checkpoint.

    Args:
        path: of a checkpoint of either kind.
        module: whose tensors are plain or DTensors.
        optimizers: empty where training is not resumed.
        strict: whether both must have the same weights.

    Raises ValueError for weights that are missing, unexpected or of another shape, by name, and where there
    is no state of these optimizers.
    """
    names = [parameter_names(optimizer, module) for optimizer in optimizers]
    tensors, state = open_parts(path, names)
    _load_weights(path, tensors, state["aliases"], module, strict)
    if optimizers:
        parameters = dict(module.named_parameters())

        def read(stored: str, name: str) -> Tensor:
            return _own_state(path, tensors, stored, parameters[name])

        for optimizer, own, rest in zip(optimizers, names, state["optimizers"], strict=True):
            optimizer.load_state_dict(to_numbered(rest, tensors.names, read, own))
    checkpoint: dict[str, Any] = state["checkpoint"]
    return checkpoint


def open_parts(path: Path, names: Sequence[Names]) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a checkpoint of either kind by name, not read yet, and the rest, as `split` returns it.

    Args:
        path: of the checkpoint.
        names: of the parameters of every optimizer, by number; empty where training is not resumed.

    Raises ValueError where there is no state of these optimizers.
    """
    tensors: Tensors
    if path.is_dir():
        tensors = CheckpointFolder(path)
        state = _state(tensors)
    else:
        content = read_checkpoint(path)
        held, state = split(content if names else without_optimizers(content), names, {})
        tensors = HeldTensors(held)
    if names and (state["optimizers"] is None or len(state["optimizers"]) != len(names)):
        raise ValueError(f"{path} holds no state of the optimizer, so training cannot be resumed from it")
    return tensors, state


def stored_weights(
    path: Path,
    tensors: Tensors,
    aliases: Mapping[str, str],
    wanted: Mapping[str, Sequence[int]],
    strict: bool = True,
) -> dict[str, str]:
    """Under which names a checkpoint stores the weights of a module, by the module's own.

    Args:
        path: of the checkpoint, as errors call it.
        tensors: of `open_parts`.
        aliases: further names of tensors, and the names under which they are stored.
        wanted: the shapes of the module's weights.
        strict: whether both must have the same weights.

    Raises ValueError for weights that are missing, unexpected or of another shape, by name.
    """
    held = {name.removeprefix(WEIGHTS): name for name in tensors.names if name.startswith(WEIGHTS)}
    held |= {name: held[stored] for name, stored in aliases.items()}
    problems = {"missing": wanted.keys() - held.keys(), "unexpected": held.keys() - wanted.keys()}
    for what, names in problems.items() if strict else ():
        if names:
            raise ValueError(f"{path} does not fit the model; weights {what}: {first_of(sorted(names))}")
    for name in wanted.keys() & held.keys():
        _refuse_shape(path, name, tensors.shape(held[name]), tuple(wanted[name]))
    return {name: held[name] for name in wanted if name in held}


@torch.no_grad()
def _load_weights(
    path: Path, tensors: Tensors, aliases: Mapping[str, str], module: nn.Module, strict: bool
) -> None:
    own = module.state_dict()
    shapes = {name: tensor.shape for name, tensor in own.items()}
    for name, stored in stored_weights(path, tensors, aliases, shapes, strict).items():
        part = own_part(name, own[name], rank=0)
        part.data.copy_(tensors.box(stored, part.box))


def _own_state(path: Path, tensors: Tensors, stored: str, parameter: Tensor) -> Tensor:
    """A tensor of an optimizer's state, laid out as its parameter, on its device."""
    if not isinstance(parameter, DTensor):
        return tensors.tensor(stored).to(parameter.device, copy=True)
    part = own_part(stored, parameter, rank=0)
    _refuse_shape(path, stored, tensors.shape(stored), part.shape)
    return DTensor.from_local(
        tensors.box(stored, part.box).to(part.data.device, copy=True),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _refuse_shape(path: Path, name: str, held: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if held != wanted:
        raise ValueError(f"{path} does not fit the model; {name} is {list(held)} instead of {list(wanted)}")
