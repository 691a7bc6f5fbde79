"""One micro-batch of training on paper: how many bytes are held at every moment, unit by unit.

Weights are left out, and gradients are noted beside: what of them lies on a GPU depends on the strategy, see
`v1lit.plan.memory`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from v1lit.backbones.efficiency import part_layers
from v1lit.plan.architecture import model_on_meta
from v1lit.plan.batch import BatchShape, PaperBatch
from v1lit.plan.paper import Paper
from v1lit.plan.units import EMBEDDINGS, HEAD, REST, unit_of_parameters
from v1lit.pointer.joint_loss import chunked
from v1lit.pointer.joint_loss import choice as loss_choice
from v1lit.pointer.joint_loss.rows import LogitRows, RowTerms
from v1lit.pointer.model import PointAndCopyModel

Phase = Literal["forward", "backward"]


class Held(NamedTuple):
    """Bytes that are held at one moment, of what does not depend on the strategy."""

    activations: int
    copies: int
    """Weights in the type of the products, which autocast makes."""
    gradients: int
    """Of weights, made since the moment began."""

    @property
    def total(self) -> int:
        return sum(self)


@dataclass
class Moment:
    """A stretch of a step in which one unit computes."""

    unit: str
    phase: Phase
    fullest: Held = Held(0, 0, 0)
    """Where most is held, if gradients stay."""
    passing: Held = Held(0, 0, 0)
    """Where most is held, if gradients are added to others and freed."""
    gradients: dict[str, int] = field(default_factory=dict)
    """Numbers in the gradients that were made, by unit."""
    after: Held = Held(0, 0, 0)
    """What is held at the end."""


class Recorder(Paper):
    """Tensors on paper, whose live bytes are noted by moments."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[Moment] = []
        self.backward = False
        self._made = 0

    def begin(self, unit: str) -> None:
        """The moment at which `unit` begins to compute."""
        self._close()
        self._made = 0
        self.moments.append(Moment(unit, "backward" if self.backward else "forward"))
        self.noted()

    @property
    def unit(self) -> str:
        """What computes now."""
        return self.moments[-1].unit if self.moments else ""

    def noted(self) -> None:
        super().noted()
        if not self.moments:
            return
        moment = self.moments[-1]
        if self.live + self.copies + self._made > moment.fullest.total:
            moment.fullest = Held(self.live, self.copies, self._made)
        if self.live + self.copies > moment.passing.total:
            moment.passing = Held(self.live, self.copies, 0)

    def _close(self) -> None:
        if self.moments:
            self.moments[-1].after = Held(self.live, self.copies, 0)

    def finish(self) -> list[Moment]:
        """All moments."""
        self._close()
        return self.moments

    def take_gradient(self, parameter: nn.Parameter, unit: str) -> None:
        """Note the gradient of a parameter, and let it go."""
        gradient = parameter.grad
        assert gradient is not None
        self._made += gradient.untyped_storage().nbytes()
        made = self.moments[-1].gradients
        made[unit] = made.get(unit, 0) + gradient.numel()
        parameter.grad = None


@dataclass(frozen=True)
class Compute:
    """In which types a step computes, and on what."""

    weights: torch.dtype
    """Type of the weights that modules compute with."""
    autocast: torch.dtype | None
    """Type of the products under autocast; None without."""
    gpu: bool
    """Whether a GPU's kernels are meant: its attention, its loss, its list of autocast."""

    @property
    def products(self) -> torch.dtype:
        """Type of the products."""
        return self.autocast or self.weights


def record(model: PointAndCopyModel, shape: BatchShape, compute: Compute) -> list[Moment]:
    """Run one micro-batch on paper; `model` is on the meta device, and is of no use afterwards."""
    recorder = Recorder()
    recorder.take(model, compute.weights)
    batch = PaperBatch.of(model, shape)
    _watch(model, recorder)
    with ExitStack() as stack:
        stack.enter_context(_stand_ins(model, compute))
        stack.enter_context(recorder)
        inputs = batch.inputs(recorder)
        recorder.begin(REST)
        with torch.autocast("cpu", compute.autocast, enabled=compute.autocast is not None):
            out = model(**inputs)
        assert out.loss is not None
        recorder.backward = True
        recorder.begin(HEAD)
        out.loss.backward()
        moments = recorder.finish()
    return moments


def _watch(model: PointAndCopyModel, recorder: Recorder) -> None:
    """Let units say when they begin, and parameters when they have a gradient."""
    for part in ("vision", "language"):
        for index, layer in enumerate(part_layers(model.backbone, model.family, part)):
            _watch_layer(layer, f"{part} layer {index}", recorder)

    def before_loss(module: nn.Module, args: Any, output: Any) -> None:
        if not recorder.backward:
            recorder.begin(HEAD)

    model.backbone.get_decoder().register_forward_hook(before_loss)
    embeddings: nn.Module = model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda module, args: recorder.begin(EMBEDDINGS))
    units = unit_of_parameters(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:

            def taken(p: Any, unit: str = units[name]) -> None:
                recorder.take_gradient(p, unit)

            parameter.register_post_accumulate_grad_hook(taken)


def _watch_layer(layer: nn.Module, unit: str, recorder: Recorder) -> None:
    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        if recorder.backward:  # computed again
            return
        recorder.begin(unit)
        states = args[0] if args else kwargs["hidden_states"]
        if states.requires_grad:
            # The layer before has begun already, if there is one.
            states.register_hook(lambda _: recorder.begin(REST) if recorder.unit == unit else None)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if recorder.backward:
            return
        states = output[0] if isinstance(output, tuple) else output
        if states.requires_grad:
            states.register_hook(lambda _: recorder.begin(unit))
        recorder.begin(REST)

    layer.register_forward_pre_hook(before, with_kwargs=True)
    layer.register_forward_hook(after)


# ---- what a GPU does otherwise ----------------------------------------------------------------------------


class _Flash(torch.autograd.Function):
    """Attention that keeps queries, keys, values, output and a sum per row, as flash attention does."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # The output's memory lies as [batch, tokens, heads, width].
        output = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _flash_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    output: Tensor = _Flash.apply(query, key, value)
    return output


def _norm_in_float32(input: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 0) -> Tensor:
    """Autocast's list for CUDA has it in float32; the list for CPUs leaves it in the type of its input."""
    if torch.is_autocast_enabled("cpu"):
        input, weight, bias = (x if x is None else x.float() for x in (input, weight, bias))
    return torch.layer_norm(input, shape, weight, bias, eps)


@contextmanager
def _stand_ins(model: PointAndCopyModel, compute: Compute) -> Iterator[None]:
    """The loss as it would keep memory: its kernels cannot be called, or tried, without memory."""
    options = model.pointer_options
    implementation = "reference" if options.loss_implementation == "reference" else "chunked"
    model.config.pointer["loss_implementation"] = implementation
    model.pointer_options = model.config.pointer_options
    half = compute.products != torch.float32
    in_place = compute.gpu and half and options.loss_implementation in ("auto", "triton")
    with ExitStack() as stack:
        if compute.gpu:
            stack.enter_context(patch.dict(chunked.BUFFER, cpu=chunked.BUFFER["cuda"]))
            stack.enter_context(patch.object(chunked, "_add_product", lambda *args: None))
            stack.enter_context(patch.object(F, "scaled_dot_product_attention", _flash_attention))
            stack.enter_context(patch.object(F, "layer_norm", _norm_in_float32))
        else:
            stack.enter_context(patch.object(chunked, "_adds_in_place", lambda *args: False))
        if in_place and options.z_top_k is None:
            stack.enter_context(patch.object(loss_choice, "torch_rows", _rows_in_place))
        yield


def _rows_in_place(rows: LogitRows) -> RowTerms:
    return RowTerms.empty(len(rows.labels), rows.logits)
