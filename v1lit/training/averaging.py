"""An exponential moving average of the weights: what is validated, chosen, exported and reported on.

The module holds the weights that are trained, and the average takes their place while a run validates and
when it has ended. A checkpoint has the average as the module's weights, so that whoever opens it gets the
average, and the trained weights as a state of the optimizer, which only a resumed run reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from v1lit.errors import OptionError
from v1lit.training.lightning_internals import put_weights, weights_of

OTHER = "other"
"""Of the average and the trained weight the one that the model does not hold; in a checkpoint the latter."""


class Averages(Optimizer):
    """Follows parameters as an optimizer that steps after the one that trains them.

    The average begins as the weights after the first step; each further step moves it by `1 - decay` of the
    way to the weights.

    Args:
        named_parameters: those that learn.
        decay: share of the average that stays in a step.

    Raises OptionError for weights that are not of float32: such small steps would be lost.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self.names: dict[str, nn.Parameter] = {}
        for name, parameter in named_parameters:
            if parameter.dtype != torch.float32:
                kind = str(parameter.dtype).removeprefix("torch.")
                why = (
                    f"{name} is of {kind}, in which an average loses its small steps\nset "
                    "model.backbone.dtype=float32, with trainer.precision=bf16-mixed for speed"
                )
                raise OptionError("ema_decay", decay, why, "model.optimizer")
            self.names[name] = parameter
        super().__init__(list({id(own): own for own in self.names.values()}.values()), {})
        self._average = get_ema_multi_avg_fn(decay)
        self.held = False
        """Whether the model holds the averages now."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that are followed, by number."""
        return [own for group in self.param_groups for own in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take the weights of this step into the averages."""
        parameters = self.parameters
        if not self.state:
            for own in parameters:
                self.state[own][OTHER] = own.detach().clone()
            return
        averages = [_local(self.state[own][OTHER]) for own in parameters]
        self._average(averages, [_local(own) for own in parameters], 0)

    @torch.no_grad()
    def hold(self, averages: bool, module: nn.Module) -> None:
        """Let the model hold the averages or, again, the weights that are trained.

        module: what may have gathered weights that are divided over ranks, and must gather them anew.
        """
        if not self.state or averages == self.held:
            return
        for own in self.parameters:
            held, other = _local(own), _local(self.state[own][OTHER])
            kept = held.clone()
            held.copy_(other)
            other.copy_(kept)
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()
        self.held = averages

    def state_dict(self) -> dict[str, Any]:
        """The trained weights, whatever the model holds: the averages are the module's in a checkpoint."""
        packed = super().state_dict()
        if not self.held and self.state:
            packed["state"] = {number: {OTHER: own.detach()} for number, own in enumerate(self.parameters)}
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of a checkpoint whose weights, the averages, the model holds already."""
        super().load_state_dict(state_dict)
        self.held = bool(self.state)

    def put_into(self, weights: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """The weights of a state dict with the averages in their place; `prefix` begins their names there."""
        if self.held or not self.state:
            return dict(weights)
        return {**weights, **{prefix + name: self.state[own][OTHER] for name, own in self.names.items()}}


def averages_of(trainer: Trainer | None) -> Averages | None:
    """What follows the weights of a run; None for a run without an average."""
    for optimizer in getattr(trainer, "optimizers", []):
        for inner in getattr(optimizer, "optimizers", []):
            if isinstance(inner, Averages):
                return inner
    return None


class AveragedModule(LightningModule):
    """Holds the average of its weights, if there is one, while it is validated and when training has ended.

    Its `model` is what is trained. Hooks of subclasses call those of this class.
    """

    model: nn.Module

    def on_train_start(self) -> None:
        """Hold the trained weights again: a checkpoint has brought the average."""
        self._hold(False)

    def on_validation_start(self) -> None:
        """Hold the average meanwhile."""
        self._hold(True)

    def on_validation_end(self) -> None:
        """Hold the trained weights again."""
        self._hold(False)

    def on_train_end(self) -> None:
        """Hold the average from now on."""
        self._hold(True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint have the average as its weights."""
        if (averages := averages_of(self.trainer)) is not None:
            put_weights(checkpoint, averages.put_into(weights_of(checkpoint), "model."))

    def _hold(self, average: bool) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING and (averages := averages_of(self.trainer)) is not None:
            averages.hold(average, self)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
