"""One micro-batch of training on paper: how many bytes are held at every moment, unit by unit.

Weights are left out, and gradients are noted beside: what of them lies on a GPU depends on the strategy, see
`v1lit.plan.memory`.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from v1lit.plan.batch import BatchShape, PaperBatch
from v1lit.plan.gpu_kernels import Compute, kernels_of
from v1lit.plan.layers import watch_layers
from v1lit.plan.moments import Moment, Recorder
from v1lit.plan.units import EMBEDDINGS, HEAD, REST, unit_of_parameters
from v1lit.pointer.model import PointAndCopyModel


def record(model: PointAndCopyModel, shape: BatchShape, compute: Compute) -> list[Moment]:
    """Run one micro-batch on paper; `model` is on the meta device, and is of no use afterwards."""
    recorder = Recorder()
    recorder.take(model, compute.weights)
    batch = PaperBatch.of(model, shape)
    _watch(model, recorder)
    with ExitStack() as stack:
        stack.enter_context(kernels_of(model, compute))
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


def _watch(model: PointAndCopyModel, recorder: Recorder) -> None:
    """Let units say when they begin, and parameters when they have a gradient."""
    watch_layers(model, recorder)

    def before_loss(module: nn.Module, args: Any, output: Any) -> None:
        if not recorder.backward:
            recorder.begin(HEAD)

    model.backbone.get_decoder().register_forward_hook(before_loss)
    embeddings: nn.Module = model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda module, args: recorder.begin(EMBEDDINGS))
    embeddings.register_forward_hook(lambda module, args, output: recorder.begin(REST))
    units = unit_of_parameters(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:

            def taken(p: Any, unit: str = units[name]) -> None:
                recorder.take_gradient(p, unit)

            parameter.register_post_accumulate_grad_hook(taken)
