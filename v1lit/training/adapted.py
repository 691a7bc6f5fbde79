"""What a run with adapters does otherwise: it saves what is trained alone, and repeats its dropout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from v1lit.backbones.adapters.config import AdapterConfig
from v1lit.backbones.config import BackboneConfig
from v1lit.errors import OptionError, first_of
from v1lit.pointer.adapted import base_dtype, kept_names
from v1lit.pointer.model import PointAndCopyModel
from v1lit.training.averaging import AveragedModule
from v1lit.training.resuming import RecipeChangedError

MODEL = "model."
"""Begins the names of the model's weights in a module."""
BASE = "adapter_base"
"""Key of a checkpoint: the fingerprint of the backbone that its adapters belong to."""


class AdaptedModule(AveragedModule):
    """Its state is that of all parameters or, with adapters, of those alone that are trained.

    Its `model` is made by `make_model`. Hooks of subclasses call those of this class.
    """

    model: PointAndCopyModel
    adapter_config: AdapterConfig
    init_seed: int

    def make_model(self, begin_from: str | None = None) -> None:
        """Make the model, once; see `V1Module.make_model`."""
        raise NotImplementedError

    @property
    def kept(self) -> set[str] | None:
        """Names of the parameters that a checkpoint holds; None for all."""
        if not hasattr(self, "model") or not self.model.adapter:
            return None
        return {MODEL + name for name in kept_names(self.model)}

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """As in torch, but of a model with adapters without its frozen weights."""
        state: dict[str, Any] = super().state_dict(*args, **options)
        kept = self.kept
        return state if kept is None else {name: state[name] for name in state if name in kept}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in torch. Makes the model first: of a run in spawned processes, only the weights come back."""
        self.make_model()
        kept = self.kept
        if kept is None:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        for what, names in (("missing", kept - set(state_dict)), ("unexpected", set(state_dict) - kept)):
            if strict and names:
                raise RuntimeError(f"weights {what}: {first_of(sorted(names))}")
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch, but of the tensors only parameters change their type, as in transformers.

        Sums of metrics and frequencies of rotary embeddings are no parameters, and useless in half precision.
        """
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        for parameter in self.parameters() if dtype is not None else ():
            if parameter.is_floating_point():  # weights in 4 bits are not
                parameter.data = parameter.data.to(dtype)
        return self if device is None else super().to(device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which backbone the adapters belong to."""
        if self.model.base is not None:
            checkpoint[BASE] = self.model.base.fingerprint
        super().on_save_checkpoint(checkpoint)

    def refuse_other_base(self, checkpoint: Mapping[str, Any]) -> None:
        """Raise RecipeChangedError for a checkpoint whose adapters belong to another backbone."""
        base = self.model.base if hasattr(self, "model") else None
        if base is not None and checkpoint.get(BASE, base.fingerprint) != base.fingerprint:
            raise RecipeChangedError(
                f"the checkpoint's adapters belong to another backbone: {base.weights} has other weights now",
                ["model.backbone.weights"],
            )

    def seed_dropout(self, batch_idx: int) -> None:
        """Let the dropout of adapters depend on nothing but seed, epoch, batch and rank."""
        if self.model.adapter.dropout:
            place = (self.init_seed, self.current_epoch, batch_idx, self.global_rank)
            torch.manual_seed(hash(place) % 2**63)


def learned_dtype(model: PointAndCopyModel) -> torch.dtype:
    """The type of what learns beside the backbone: with adapters float32, else that of the backbone."""
    return next(model.pointer_head.parameters()).dtype


def refuse_mixed_types(model: PointAndCopyModel, compute: torch.dtype, backbone: BackboneConfig) -> None:
    """Raise OptionError where what learns is float32, the backbone is not, and no autocast makes them one."""
    if model.adapter and learned_dtype(model) != base_dtype(model) and compute != base_dtype(model):
        why = (
            "what learns beside it is kept in float32, and both must compute in one type\n"
            f"set trainer.precision to {'16' if base_dtype(model) == torch.float16 else 'bf16'}-mixed"
        )
        raise OptionError("dtype", backbone.dtype, why, "model.backbone")
