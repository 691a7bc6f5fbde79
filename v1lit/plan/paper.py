"""Tensors on paper: shapes and types without memory, and the bytes that would be live at every moment.

Floating-point tensors are torch's fake tensors. Integers and truth values are real: how tokens and images
lie in a batch is worked out from their values, and they are small. So the model's own code runs, forward and
backward, autocast and recomputation included, and every byte that a real step would hold is counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CASTS = (torch.ops.aten._to_copy.default,)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make while the mode is on, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        """Bytes that are held now, without the copies."""
        self.copies = 0
        """Bytes that are held now by parameters in another type, as autocast makes them."""
        self.peak = 0
        """The most that both have been together."""
        self._sizes: dict[int, int] = {}
        self._weights: set[int] = set()

    def exclude(self, tensors: Iterable[Tensor]) -> None:
        """Leave these tensors out, and views of them: they are counted elsewhere."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            self._sizes[key] = 0
            self._weights.add(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self.run(func, args, kwargs or {})
        is_copy = func in CASTS and _storage(args[0]) in self._weights
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor, is_copy)
        self.noted()
        return out

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operation itself."""
        return func(*args, **kwargs)

    def noted(self) -> None:
        """Called after every operation."""
        self.peak = max(self.peak, self.live + self.copies)

    def _note(self, tensor: Tensor, is_copy: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        size = self._sizes[key] = storage.nbytes()
        self.copies += size * is_copy
        self.live += size * (not is_copy)
        weakref.finalize(storage, self._freed, key, is_copy)

    def _freed(self, key: int, is_copy: bool) -> None:
        size = self._sizes.pop(key, 0)
        self.copies -= size * is_copy
        self.live -= size * (not is_copy)


def _storage(tensor: Any) -> int:
    return tensor.untyped_storage()._cdata if isinstance(tensor, Tensor) else 0


class Paper(LiveBytes):
    """While the mode is on, floating-point tensors have no memory."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_paper = any(isinstance(t, FakeTensor) or t.is_floating_point() for t in tensors)
        with ExitStack() as modes:
            if on_paper or (not tensors and _makes_floats(args, kwargs)):
                modes.enter_context(self.fake)
            return func(*args, **kwargs)

    def empty(self, shape: Iterable[int], dtype: torch.dtype) -> Tensor:
        """A tensor on paper."""
        with self.fake:
            return torch.empty(tuple(shape), dtype=dtype)

    def take(
        self, model: nn.Module, dtype: torch.dtype | None = None, learned: torch.dtype | None = None
    ) -> None:
        """Replace parameters and buffers of a model on the meta device.

        Parameters are in `dtype` if given, and those that learn in `learned`.
        """
        shared: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) not in shared:
                    kind = (learned if parameter.requires_grad else None) or dtype or parameter.dtype
                    data = self.empty(parameter.shape, kind)
                    shared[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
                if parameter is not None:
                    module._parameters[name] = shared[id(parameter)]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    new = self.empty if buffer.is_floating_point() else torch.zeros
                    module._buffers[name] = new(buffer.shape, dtype=buffer.dtype)
        self.exclude([*model.parameters(), *model.buffers()])


def _makes_floats(args: Any, kwargs: Any) -> bool:
    """Whether an operation without tensors makes floating-point numbers."""
    dtype = kwargs.get("dtype")
    if dtype is not None:
        return bool(dtype.is_floating_point)
    return not all(isinstance(leaf, (bool, int)) for leaf in tree_leaves(args)) or not args
