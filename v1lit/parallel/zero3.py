"""DeepSpeed's ZeRO-3 on a model: a parameter is divided, as flat numbers, over all ranks.

What is private to DeepSpeed stands here and nowhere else. Of a parameter of `n` numbers every rank holds
`ceil(n / ranks)`, one after the other, the last one filled up with zeros; the parameter itself is empty
between two uses. Functions that gather are called on all ranks, for the same parameters in the same order.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from v1lit.parallel.tensors import whole_shape
from v1lit.pointer.base import WITH_WEIGHT
from v1lit.pointer.model import PointAndCopyModel

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Of AdamW; each as large as the parameter."""
STEP = "step"
"""Of AdamW's state, how many were done."""


def begin_deepspeed(device: torch.device, rank: int, local_rank: int) -> None:
    """Let DeepSpeed use the process group that there is, for models on this kind of device."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)  # else it takes a GPU wherever there is one
    places = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": dist.get_world_size()}
    for name, value in places.items():
        os.environ.setdefault(name, str(value))
    import deepspeed

    deepspeed.utils.logging.logger.setLevel(logging.WARNING)
    deepspeed.init_distributed(dist_init_required=False)


def engine_options(limit: float | None, compute: torch.dtype | None, keep_whole: int) -> dict[str, Any]:
    """What DeepSpeed calls a configuration. Whoever calls `backward` divides the loss by micro-batches.

    Args:
        limit: norm to which gradients are clipped.
        compute: the type of autocast; None for that of the parameters.
        keep_whole: numbers of a parameter up to which it stays gathered.
    """
    # Of no module, so that weights and, above all, gradients travel in float32.
    autocast: dict[str, Any] = {"enabled": True, "dtype": str(compute).removeprefix("torch.")}
    autocast["lower_precision_safe_modules"] = []
    return {
        "train_micro_batch_size_per_gpu": 1,  # of its own throughput; examples are counted by v1lit
        "gradient_accumulation_steps": 1,
        "gradient_clipping": limit or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": keep_whole},
        **({} if compute is None else {"torch_autocast": autocast}),
    }


def divide_parameter(parameter: nn.Parameter, options: Mapping[str, Any]) -> None:
    """Divide one parameter over the ranks, in place, with the values that rank 0 has."""
    import deepspeed

    alone = nn.ParameterList([parameter])
    deepspeed.zero.Init(module=alone, config_dict_or_path=dict(options))


def divide_model(model: PointAndCopyModel, options: Mapping[str, Any]) -> None:
    """Divide what is not divided yet of a model's parameters, in place, with the values that rank 0 has."""
    import deepspeed

    deepspeed.zero.Init(module=model, config_dict_or_path=dict(options))
    head = model.get_output_embeddings()
    setattr(head, WITH_WEIGHT, partial(_with_weight, head))
    model.is_sharded = True


def make_engine(module: nn.Module, optimizer: Optimizer, options: Mapping[str, Any]) -> Any:
    """The engine that trains a module; it has emptied the groups of the optimizer, which it drives."""
    import deepspeed

    made = deepspeed.initialize(
        model=module, optimizer=optimizer, config=dict(options), dist_init_required=False
    )
    return made[0]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """`[]`: the norm of all gradients, behind the last backward pass of a step; the same on every rank."""
    from deepspeed.utils import safe_get_local_grad

    own = [safe_get_local_grad(one) for one in parameters if one.requires_grad]
    squares = torch.stack([gradient.double().square().sum() for gradient in own]).sum()
    dist.all_reduce(squares)
    return squares.sqrt().float()


# ------------------------------------------------------------------ whole tensors


class Shares:
    """Which rank keeps which whole tensor: the one with the fewest numbers so far.

    Args:
        ranks: how many there are.
    """

    def __init__(self, ranks: int) -> None:
        self._numbers = [0] * ranks

    def owner(self, numbers: int) -> int:
        """The rank that keeps the next tensor; the same wherever it is asked in the same order."""
        rank = self._numbers.index(min(self._numbers))
        self._numbers[rank] += numbers
        return rank


def gather_weights(named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """Of the weights, each gathered alone, those that this rank keeps whole, on the CPU."""
    import deepspeed

    kept, shares = {}, Shares(dist.get_world_size())
    for name, parameter in named:
        with deepspeed.zero.GatheredParameters([parameter]):
            if shares.owner(math.prod(whole_shape(parameter))) == dist.get_rank():
                kept[name] = parameter.detach().to("cpu", copy=True)
    return kept


def gather_moments(
    names: Sequence[str], parameters: Mapping[str, nn.Parameter], optimizer: Optimizer
) -> dict[int, dict[str, Any]]:
    """AdamW's state by the number of its parameter: of the tensors those that this rank keeps, whole.

    Args:
        names: of the parameters by number.
        parameters: by name.
        optimizer: that the engine drives.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    done = [own[STEP] for own in optimizer.state.values()]
    if not done:
        return {}
    state: dict[int, dict[str, Any]] = {}
    shares = Shares(dist.get_world_size())
    for number, name in enumerate(names):
        state[number] = {STEP: done[0].detach().to("cpu", copy=True)}
        for key in MOMENTS:
            whole = safe_get_full_optimizer_state(parameters[name], key)
            if shares.owner(whole.numel()) == dist.get_rank():
                state[number][key] = whole.detach().to("cpu", copy=True)
    return state


# ------------------------------------------------------------------ from whole tensors


def set_weight(parameter: nn.Parameter, read: Callable[[], Tensor]) -> None:
    """Give a divided parameter other values; rank 0 reads them, as a whole tensor of its shape."""
    import deepspeed
    from deepspeed.utils import safe_set_local_fp32_param

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if dist.get_rank() == 0:
            parameter.data.copy_(read())
    if hasattr(parameter, "_z3_optimizer"):  # what the optimizer steps, where it has a copy
        safe_set_local_fp32_param(parameter, _own(parameter))


def own_numbers(whole: Tensor, parameter: nn.Parameter) -> Tensor:
    """`[ceil(n / ranks)]`: what this rank holds of a whole tensor, filled up with zeros."""
    size = _own(parameter).numel()
    own = whole.flatten()[size * dist.get_rank() :][:size]
    return nn.functional.pad(own, (0, size - own.numel()))


@torch.no_grad()
def set_moments(
    engine: Any, optimizer: Optimizer, parameters: Sequence[nn.Parameter], state: Mapping[int, Any]
) -> None:
    """Give the optimizer that an engine drives another state.

    Args:
        engine: that `make_engine` made.
        optimizer: of torch, that it drives.
        parameters: by number.
        state: by number, the steps done and what `own_numbers` returned of every moment.
    """
    from deepspeed.utils import safe_set_local_optimizer_state

    if not state:
        return
    done = next(iter(state.values()))[STEP]
    for flat in engine.optimizer.fp32_partitioned_groups_flat:
        moments = {key: torch.zeros_like(flat) for key in MOMENTS}
        steps = torch.as_tensor(done, dtype=torch.float32).to(flat.device, copy=True)
        optimizer.state[flat] = {STEP: steps, **moments}
    for number, own in state.items():
        for key in MOMENTS:
            safe_set_local_optimizer_state(parameters[number], own[key], key)


def _own(parameter: Any) -> Tensor:
    """What this rank holds of a divided parameter."""
    held: Tensor = parameter.ds_tensor
    return held


def _with_weight(head: nn.Linear, hidden: Tensor, run: Callable[[Tensor, Tensor], Any]) -> Any:
    """`run` in place of the head's own computation: DeepSpeed gathers the weight around a module's call."""
    forward = head.forward
    head.forward = lambda hidden: run(hidden, head.weight)  # type: ignore[method-assign, assignment]
    try:
        return head(hidden)
    finally:
        head.forward = forward  # type: ignore[method-assign]
