"""One micro-batch of training on paper: how many bytes are held at every moment, unit by unit.

The first and the last layers of a kind compute, the others are noted to be like these. Weights are left out,
and gradients are noted beside: what of them lies on a GPU depends on the strategy, see `v1lit.plan.memory`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch import distributed as dist

from v1lit.backbones.efficiency import part_layers
from v1lit.backbones.image_blocks import windows
from v1lit.parallel.context_parallel import RowShare
from v1lit.plan.batch import BatchShape, PaperBatch
from v1lit.plan.gpu_kernels import Compute, kernels_of
from v1lit.plan.moments import Moment, Recorder
from v1lit.plan.units import EMBEDDINGS, HEAD, REST, unit_of_parameters
from v1lit.pointer.model import PointAndCopyModel


def record(model: PointAndCopyModel, shape: BatchShape, compute: Compute) -> list[Moment]:
    """Run one micro-batch on paper; `model` is on the meta device, and is of no use afterwards."""
    recorder = Recorder()
    recorder.take(model, compute.weights, compute.learned)
    batch = PaperBatch.of(model, shape)
    _watch(model, recorder, shape.context)
    with ExitStack() as stack:
        stack.enter_context(kernels_of(model, compute))
        stack.enter_context(without_exchange())
        stack.enter_context(recorder)
        inputs = batch.inputs(recorder)
        recorder.begin(REST)
        with torch.autocast("cpu", compute.autocast, enabled=compute.autocast is not None):
            out = model(**inputs)
        recorder.autocast_ended()
        assert out.loss is not None
        recorder.backward = True
        recorder.begin(HEAD)
        out.loss.backward()
        return recorder.finish()


@contextmanager
def without_exchange() -> Iterator[None]:
    """What would be received from other GPUs has its memory, and whatever lies there."""
    with (
        patch.object(dist, "all_to_all_single", lambda *args, **options: None),
        patch.object(dist, "all_gather_into_tensor", lambda *args, **options: None),
    ):
        yield


def _row_share(gpus: int) -> Callable[..., Any]:
    """What calls the decoder, with the first GPU's part of the row where others share it."""
    alone: Any = None  # no group: see `without_exchange`
    return RowShare(alone, 0, gpus).decode if gpus > 1 else lambda decoder, **inputs: decoder(**inputs)


def _watch(model: PointAndCopyModel, recorder: Recorder, context: int) -> None:
    """Let units say when they begin, and parameters when they have a gradient."""
    _watch_layers(model, recorder)
    decode_row = _row_share(context)

    def decode(decoder: nn.Module, **inputs: Any) -> Any:
        decoded = decode_row(decoder, **inputs)
        recorder.begin(HEAD)
        return decoded

    model.decode = decode
    embeddings: nn.Module = model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda module, args: recorder.begin(EMBEDDINGS))
    embeddings.register_forward_hook(lambda module, args, output: recorder.begin(REST))
    units = unit_of_parameters(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:

            def taken(p: Any, unit: str = units[name]) -> None:
                recorder.take_gradient(p, unit)

            parameter.register_post_accumulate_grad_hook(taken)


# ---- layers ------------------------------------------------------------------------------------------------


def _watch_layers(model: PointAndCopyModel, recorder: Recorder) -> None:
    """Let all layers say when they begin; of those in the middle, only note what they would hold."""
    for part in ("vision", "language"):
        layers = part_layers(model.backbone, model.family, part)
        for kind in _kinds(model, part, layers):
            of_kind = _Kind(recorder)
            computing = _computing(kind, len(layers))
            for index in kind:
                unit = f"{part} layer {index}"
                if index in computing:
                    of_kind.watch(layers[index], unit, index > 0)
                else:
                    of_kind.replace(layers[index], unit)


def _kinds(model: PointAndCopyModel, part: str, layers: list[nn.Module]) -> list[list[int]]:
    """The numbers of layers that do the same.

    In some towers, a few attend to the whole image, in some decoders a few to all tokens, and in some a few
    carry a state in place of attention. Deep features are made behind a few of a tower's layers, and enter
    behind the first ones of the decoder; their backward pass is part of that of the layer after.
    """
    config = model.backbone.config
    deep: set[int] = set(range(model.family.deep_layers(config)))
    all_seen = enumerate(windows(config.get_text_config()))
    full = {index for index, window in all_seen if window is None}
    if part == "vision":
        vision = getattr(config, "vision_config", None)
        deep = set(getattr(vision, "deepstack_visual_indexes", None) or ())
        full = set(getattr(vision, "fullatt_block_indexes", None) or ())
    types = (getattr(config.get_text_config(), "layer_types", None) or ()) if part == "language" else ()
    states = {index for index, name in enumerate(types) if name == "linear_attention"}
    kinds: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, layer in enumerate(layers):
        shapes = tuple(weight.shape for weight in layer.parameters())  # of a tower in stages they differ
        kinds[index in full, index in states, index in deep, index - 1 in deep, shapes].append(index)
    return list(kinds.values())


def _computing(kind: list[int], count: int) -> set[int]:
    """The first and the last layer of all, and of the kind the first and the last besides these."""
    inner = [index for index in kind if 0 < index < count - 1]
    return {0, count - 1, *inner[:1], *inner[-1:]}


class _Kind:
    """What layers of one kind hold, as those that computed have shown."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.forward: Moment | None = None
        self.between: Moment | None = None
        """Behind the layer's forward pass."""
        self.backward: Moment | None = None

    def watch(self, layer: nn.Module, unit: str, typical: bool) -> None:
        """Note when a layer begins and ends; what a typical one holds is taken for others of the kind."""
        recorder = self.recorder

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            if recorder.backward:  # computed again
                return
            recorder.begin(unit)
            if typical and self.forward is None:
                self.forward = recorder.moments[-1]
            states = args[0] if args else kwargs["hidden_states"]
            self.ends(states, unit)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if recorder.backward:
                return
            states = output[0] if isinstance(output, tuple) else output
            if states.requires_grad:
                states.register_hook(lambda _: self._backward_begins(unit, typical))
            recorder.begin(REST)
            if typical and self.between is None:
                self.between = recorder.moments[-1]

        layer.register_forward_pre_hook(before, with_kwargs=True)
        layer.register_forward_hook(after)

    def ends(self, states: Tensor, unit: str) -> None:
        """Note the end of a layer's backward pass, unless the layer before it begins."""
        recorder = self.recorder
        if states.requires_grad:
            states.register_hook(lambda _: recorder.begin(REST) if recorder.unit == unit else None)

    def replace(self, layer: Any, unit: str) -> None:
        """Let a layer compute nothing, and note it as the others of its kind."""
        recorder = self.recorder

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            assert self.forward is not None
            recorder.begin(unit, self.forward)
            recorder.repeated.append(self.forward.unit)
            self.ends(hidden_states, unit)
            output: Tensor = _Nothing.apply(hidden_states)
            if output.requires_grad:
                output.register_hook(lambda _: recorder.begin(unit, self.backward))
            recorder.begin(REST, self.between)
            return output

        layer.gradient_checkpointing = False
        layer.forward = forward

    def _backward_begins(self, unit: str, typical: bool) -> None:
        self.recorder.begin(unit)
        if typical:  # of several, the one before the middle
            self.backward = self.recorder.moments[-1]


class _Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor) -> Tensor:
        return torch.empty_like(states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.empty_like(gradient)
