"""The tensors of a model and where in it they hang, so that others can take their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from v1lit.backbones.weight_reading import Slices
from v1lit.parallel.boxes import Box, own_part


@dataclass(frozen=True, eq=False)
class ModelTensor:
    """A parameter or a buffer, and every place of a model at which it hangs: tied ones have several."""

    tensor: Tensor
    """What hangs there now; it may be on `meta`."""
    places: list[tuple[nn.Module, str, str]]
    """Of each: the module, its name there, and in the whole model."""

    @property
    def names(self) -> list[str]:
        """In the whole model."""
        return [name for _, _, name in self.places]

    def fill(self, device: torch.device, read: Callable[[Slices], Tensor]) -> None:
        """Put a new tensor on this device in its place, with the part of the whole that `read` returns.

        `read` is not called where this process holds nothing of it.
        """
        part = own_part(self.names[0], self.tensor, rank=0)
        local = torch.empty(part.box.sizes, dtype=self.tensor.dtype, device=device)
        if local.numel():
            local.copy_(read(part.box.within(Box.whole(part.shape))))
        made: Tensor = local
        if isinstance(self.tensor, DTensor):
            made = DTensor.from_local(
                local,
                self.tensor.device_mesh,
                self.tensor.placements,
                run_check=False,
                shape=self.tensor.shape,
                stride=self.tensor.stride(),
            )
        self._replace(made)

    def move(self, device: torch.device) -> None:
        """Put what hangs there on this device."""
        self._replace(self.tensor.to(device))

    def _replace(self, made: Tensor) -> None:
        parameter = isinstance(self.tensor, nn.Parameter)
        if parameter:
            made = nn.Parameter(made, requires_grad=self.tensor.requires_grad)
        for module, name, _ in self.places:
            tensors: dict[str, Any] = module._parameters if parameter else module._buffers
            tensors[name] = made


def whole_shape(tensor: Tensor) -> tuple[int, ...]:
    """Of a tensor, however it is divided or packed.

    DeepSpeed leaves an empty one in the place of a parameter, and weights in 4 bits lie two in a byte.
    """
    state = getattr(tensor, "quant_state", None)
    return tuple(getattr(tensor, "ds_shape", tensor.shape) if state is None else state.shape)


def model_tensors(model: nn.Module) -> list[ModelTensor]:
    """All parameters and buffers of a model, tied ones once."""
    held: dict[int, ModelTensor] = {}
    for path, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    full = f"{path}.{name}" if path else name
                    held.setdefault(id(tensor), ModelTensor(tensor, [])).places.append((module, name, full))
    return list(held.values())


def tensors_by_name(model: nn.Module) -> dict[str, ModelTensor]:
    """The same, tied ones under each of their names."""
    return {name: one for one in model_tensors(model) for name in one.names}
