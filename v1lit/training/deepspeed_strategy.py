"""`DeepSpeedZero3`: DeepSpeed's engine divides weights, gradients and moments over ranks."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from v1lit.backbones.adapters.config import NONE, AdapterConfig
from v1lit.backbones.adapters.folder import adapter_folder
from v1lit.backbones.config import BackboneConfig
from v1lit.errors import OptionError
from v1lit.parallel import zero3
from v1lit.parallel.fetch import fetch_weights
from v1lit.parallel.fill import fill
from v1lit.parallel.tensors import whole_shape
from v1lit.parallel.weight_stream import shared_names
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import POINT_AND_COPY, RevisitConfig
from v1lit.training.folder_strategy import FolderStrategy, refuse_place
from v1lit.training.named_state import Names, Numbered, parameter_names, to_numbered
from v1lit.training.saved_state import open_parts, split, stored_weights

DEEPSPEED = "deepspeed_zero3"
"""What `trainer.strategy` calls it."""
INSTEAD = "or take trainer.strategy=fsdp2"


class Engine(Optimizer):
    """DeepSpeed's engine as Lightning's optimizer: its groups are those of the optimizer that it drives.

    Args:
        engine: of DeepSpeed.
        inner: the optimizer of torch.

    `step` raises ValueError where the norm of the gradients is not finite, which DeepSpeed would pass over.
    """

    def __init__(self, engine: Any, inner: Optimizer) -> None:
        self.engine = engine
        super().__init__(inner.param_groups, {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.engine.step()
        if not self.engine.was_step_applied():
            raise ValueError(
                "the norm of the gradients is NaN or infinite, and DeepSpeed has left the step out; "
                "lower model.optimizer.lr, or set trainer.gradient_clip_val"
            )
        return loss


class DeepSpeedZero3(FolderStrategy):
    """Divides weights, gradients and moments over all ranks with DeepSpeed (ZeRO-3) in place of FSDP2.

    Computes and saves what `Sharded` does: the same losses, folders of the same kind. Every micro-batch
    reduces gradients.

    Args:
        keep_whole: parameters of up to as many numbers stay gathered on every rank.
        process_group_backend: such as "nccl" or "gloo"; None for the device's own.
        timeout: seconds after which ranks that wait for another one give up.

    Raises OptionError where DeepSpeed is not installed.
    """

    def __init__(
        self,
        keep_whole: int = 100_000,
        process_group_backend: str | None = None,
        timeout: float = 1800.0,
    ) -> None:
        if find_spec("deepspeed") is None:
            why = f"it needs deepspeed: install it with pip install 'v1lit[deepspeed]', {INSTEAD}"
            raise OptionError("strategy", DEEPSPEED, why, "trainer")
        super().__init__(process_group_backend=process_group_backend, timeout=timedelta(seconds=timeout))
        self.keep_whole = keep_whole
        self._engine: Any = None
        self._inner: Any = None
        self._names: Names = []
        self._counts: list[int] = []

    def setup_environment(self) -> None:
        self._refuse()
        # What the base class would make is a mesh of several dimensions.
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()
        zero3.begin_deepspeed(self.root_device, self.global_rank, self.local_rank)

    def _refuse(self) -> None:
        module: Any = self.lightning_module
        trainer: Trainer = module.trainer
        if trainer.state.fn != TrainerFn.FITTING:
            raise ValueError(f"{DEEPSPEED} trains only; open a checkpoint or an export of it in one process")
        if (precision := trainer.precision) not in ("32-true", "bf16-mixed"):
            why = f"DeepSpeed holds the weights in float32 here\nset 32-true or bf16-mixed, {INSTEAD}"
            raise OptionError("precision", precision, why, "trainer")
        if (algorithm := trainer.gradient_clip_algorithm) == "value":
            why = f"DeepSpeed clips gradients by their norm\nleave it out, {INSTEAD}"
            raise OptionError("gradient_clip_algorithm", str(algorithm.value), why, "trainer")
        if (name := module.optimizer_config.name) != "adamw":
            why = f"DeepSpeed gives the optimizer flat numbers and not matrices\nset adamw, {INSTEAD}"
            raise OptionError("name", name, why, "model.optimizer")
        if (decay := module.optimizer_config.ema_decay) is not None:
            why = f"DeepSpeed drives the optimizer alone, and keeps no average\nleave it out, {INSTEAD}"
            raise OptionError("ema_decay", decay, why, "model.optimizer")
        if kind := module.adapter_config.kind or adapter_folder(module.backbone_config.weights):
            why = f"adapters were not tried with DeepSpeed\nset null, {INSTEAD}"
            raise OptionError("kind", str(kind), why, "model.adapter")
        if parts := module.backbone_config.compile:
            why = f"compiled layers were not tried with DeepSpeed\nleave it out, {INSTEAD}"
            raise OptionError("compile", parts, why, "model.backbone")

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    @property
    def compute_dtype(self) -> torch.dtype | None:
        return torch.bfloat16 if isinstance(self.precision_plugin, MixedPrecision) else None

    # ------------------------------------------------------------------ the model

    @property
    def _options(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        limit = self.lightning_module.trainer.gradient_clip_val
        return zero3.engine_options(limit, self.compute_dtype, self.keep_whole)

    def build(
        self,
        backbone: BackboneConfig,
        pointer: PointerConfig,
        revisit: RevisitConfig = POINT_AND_COPY,
        begin_from: str | None = None,
        adapter: AdapterConfig = NONE,
    ) -> PointAndCopyModel:
        fetch_weights(backbone.weights, self.local_rank)
        options = self._options
        with torch.random.fork_rng(devices=[]):
            model = PointAndCopyModel.build(backbone, pointer, revisit, empty=True)
        divide = partial(zero3.divide_parameter, options=options)
        fill(model, backbone, self.root_device, divide, begin_from)
        zero3.divide_model(model, options)
        return model

    def setup(self, trainer: Trainer) -> None:
        super().setup(trainer)
        module = self.lightning_module
        assert module is not None
        self._inner = self.optimizers[0]
        self._names = parameter_names(self._inner, module)
        self._counts = [len(group["params"]) for group in self._inner.param_groups]  # the engine empties them
        self._engine = zero3.make_engine(module, self._inner, self._options)
        self.optimizers = [Engine(self._engine, self._inner)]
        self.model = self._engine

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Tell the engine that another micro-batch of the step follows. It reduces gradients all the same."""
        self._engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self._engine.set_gradient_accumulation_boundary(True)

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        module = self.lightning_module
        assert module is not None
        self.pre_backward(closure_loss)
        closure_loss = self.precision_plugin.pre_backward(closure_loss, module)
        self._engine.backward(closure_loss, scale_wrt_gas=False)
        closure_loss = self.precision_plugin.post_backward(closure_loss, module)
        self.post_backward(closure_loss)
        return closure_loss

    def gradient_norm(self) -> Tensor:
        assert self.lightning_module is not None
        return zero3.gradient_norm(self.lightning_module.parameters())

    # ------------------------------------------------------------------ checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole tensors that this rank writes."""
        module = self.lightning_module
        assert module is not None
        weights = zero3.gather_weights(module.named_parameters())
        buffers = self._buffers() if self.global_rank == 0 else {}
        return weights | {name: own.to("cpu", copy=True) for name, own in buffers.items()}

    def _buffers(self) -> dict[str, Tensor]:
        """What the module's state has beside parameters, of which it has placeholders."""
        module = self.lightning_module
        assert module is not None
        parameters = dict(module.named_parameters(remove_duplicate=False))
        return {name: own for name, own in module.state_dict().items() if name not in parameters}

    def optimizer_state(self, optimizer: Optimizer) -> Numbered:
        module = self.lightning_module
        assert module is not None
        numbers = iter(range(len(self._names[0])))
        groups = [
            {**group, "params": [next(numbers) for _ in range(count)]}
            for group, count in zip(self._inner.param_groups, self._counts, strict=True)
        ]
        state = zero3.gather_moments(self._names[0], dict(module.named_parameters()), self._inner)
        return {"state": state, "param_groups": groups}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        refuse_place(filepath, storage_options)
        assert self.lightning_module is not None
        parts = split(checkpoint, [self._names], shared_names(self.lightning_module))
        self.writer.begin(Path(filepath), *parts, own=True)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        module = self.lightning_module
        assert module is not None
        path = Path(self.broadcast(checkpoint_path))
        tensors, state = open_parts(path, [self._names])
        parameters = dict(module.named_parameters())
        buffers = self._buffers()
        everywhere = module.named_parameters(remove_duplicate=False)
        wanted = {name: whole_shape(own) for name, own in (*buffers.items(), *everywhere)}
        held = stored_weights(path, tensors, state["aliases"], wanted, module.strict_loading)
        for name, stored in held.items():
            if name in parameters:
                zero3.set_weight(parameters[name], partial(tensors.tensor, stored))
            elif name in buffers:
                buffers[name].copy_(tensors.tensor(stored))

        def read(stored: str, name: str) -> Tensor:
            return zero3.own_numbers(tensors.tensor(stored), parameters[name])

        numbered = to_numbered(state["optimizers"][0], tensors.names, read, self._names)
        zero3.set_moments(
            self._engine, self._inner, [parameters[name] for name in self._names[0]], numbered["state"]
        )
        checkpoint: dict[str, Any] = state["checkpoint"]
        return checkpoint


StrategyRegistry.register(DEEPSPEED, DeepSpeedZero3, description=f"v1lit: {DEEPSPEED}", override=True)
