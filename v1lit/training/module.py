"""`V1Module`: a `PointAndCopyModel` in Lightning's hands, without model logic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from v1lit.backbones.adapters.config import AdapterConfig
from v1lit.backbones.attention import choose_attention
from v1lit.backbones.config import BackboneConfig, as_options
from v1lit.data.datamodule import V1DataModule
from v1lit.data.encode.batch import Batch, blank_batch
from v1lit.errors import check_choices, check_least
from v1lit.parallel.gradients import clip_by_norm, total_norm
from v1lit.paths import expand_fields
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.joint_loss import choose_loss
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.output import PointAndCopyOutput
from v1lit.revisit.config import POINT_AND_COPY, RevisitConfig
from v1lit.training import deepspeed_strategy  # noqa: F401  # its name becomes known to Lightning
from v1lit.training.adapted import AdaptedModule, learned_dtype, refuse_mixed_types
from v1lit.training.begin_from import build_model
from v1lit.training.config import OptimizerConfig
from v1lit.training.freezing import freeze_matching
from v1lit.training.groups import learning_rates, places
from v1lit.training.lightning_internals import align, options_of, trainer_of, use_group_options
from v1lit.training.logged import (
    GRADIENT_NORM,
    LOSS,
    LOSS_ERROR,
    SKIPPED,
    TRAIN,
    VAL,
    VAL_POINTING,
    loss_part,
)
from v1lit.training.measures import Measures
from v1lit.training.metrics import LossMeans
from v1lit.training.optimizer import build_optimizer, learning_rate_factor
from v1lit.training.resuming import (
    VALIDATED,
    Resumed,
    carry_over,
    differences,
    refuse_changes,
    refuse_other_model,
)
from v1lit.training.saved_state import load_parts, read_checkpoint
from v1lit.training.steps import check_end, total_steps
from v1lit.training.strategies import compute_dtype, sharded_strategy


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite; the message names the examples."""


class V1Module(AdaptedModule):
    """Trains a backbone to point.

    The weights are made or loaded in `configure_model`, which Lightning calls when a run begins, so making a
    module is cheap. Call it yourself to use `.model` before. Configs may be plain mappings, as checkpoints
    hold them.

    Args:
        backbone: which backbone, with which weights.
        pointer: options of the pointer plug-in.
        revisit: how the model looks at the image again.
        optimizer: options of the optimizer and the learning-rate schedule.
        on_nonfinite: a NaN or infinite loss stops the run, or its batch is skipped and counted, as in
            jun297/v1, train.py, `LoggerTrainer.compute_loss`.
        max_nonfinite: skipped batches after which the run stops all the same.
        verify_loss: every N steps, compare the loss and its gradients with the readable reference on
            up to 256 positions of the batch, and stop where they differ; 0 for never.
        init_seed: of the weights that start at random: the pointer head's, and a tiny backbone's.
        freeze: parameters that do not learn, as patterns (`fnmatch`) of the model's names for them, such as
            `*.layers.0.*`; beside the parts of `backbone.freeze`.
        begin_from: folder of a model that v1lit exported, whose weights, the pointer head's too, training
            begins from, without its optimizer; config and processor are those of `backbone`.
        adapter: adapters that learn in place of the backbone.
    """

    GROUP: ClassVar[str] = "model"
    PATHS: ClassVar[tuple[str, ...]] = ("begin_from",)

    model: PointAndCopyModel

    def __init__(
        self,
        backbone: BackboneConfig,
        pointer: PointerConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        max_nonfinite: int = 10,
        verify_loss: int = 0,
        init_seed: int = 0,
        revisit: RevisitConfig = POINT_AND_COPY,
        freeze: Sequence[str] = (),
        begin_from: str | None = None,
        adapter: AdapterConfig | None = None,
    ) -> None:
        super().__init__()
        self.backbone_config = as_options(BackboneConfig, backbone)
        self.pointer_config = as_options(PointerConfig, pointer)
        self.optimizer_config = as_options(OptimizerConfig, optimizer)
        self.revisit_config = as_options(RevisitConfig, revisit)
        self.adapter_config = as_options(AdapterConfig, adapter)
        self.on_nonfinite = on_nonfinite
        self.max_nonfinite = max_nonfinite
        self.verify_loss = verify_loss
        self.init_seed = init_seed
        self.frozen_patterns = list(freeze)
        self.begin_from = begin_from
        expand_fields(self)
        check_choices(self)
        check_least(self, 0, "verify_loss")
        self.nonfinite = 0
        self._validated: Mapping[str, Tensor | float] = {}
        self._group_options: list[dict[str, Any]] = []

    @property
    def options(self) -> dict[str, Any]:
        """What to make such a module of, as plain data: `V1Module(**options)`."""
        plain = ("on_nonfinite", "max_nonfinite", "verify_loss", "init_seed", "begin_from")
        configs = ("backbone", "pointer", "optimizer", "revisit", "adapter")
        made = {name: asdict(getattr(self, f"{name}_config")) for name in configs}
        return made | {name: getattr(self, name) for name in plain} | {"freeze": self.frozen_patterns}

    def configure_model(self) -> None:
        """Make the model, once, with the weights that training begins from."""
        self.make_model(self.begin_from)

    def make_model(self, begin_from: str | None = None) -> None:
        """Make the model, once; without the weights of `begin_from` where others are put into it."""
        if hasattr(self, "model"):
            return
        configs = self.backbone_config, self.pointer_config, self.revisit_config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.init_seed)
            model = build_model(*configs, begin_from, sharded_strategy(trainer_of(self)), self.adapter_config)
        if lines := freeze_matching(model, self.frozen_patterns):
            rank_zero_info("\n".join(lines))
        if model.injected is not None:
            rank_zero_info("\n".join(model.injected.lines(model.adapter, model)))
        self.model = model.train()  # checkpoints open in eval mode, in which gradient checkpointing is off

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **options: Any) -> Any:
        """As in Lightning; of a folder, which sharded runs write, with arguments of the module alone."""
        if not isinstance(checkpoint_path, str | Path) or not Path(checkpoint_path).is_dir():
            return super().load_from_checkpoint(checkpoint_path, *args, **options)
        options.pop("weights_only", None)  # it is always so
        content = read_checkpoint(checkpoint_path)
        module = cls(*args, **{**options_of(content), **options})
        module.on_load_checkpoint(content)
        module.make_model()
        load_parts(Path(checkpoint_path), module, [])
        return module

    def forward(self, batch: Batch) -> PointAndCopyOutput:
        """Loss and predictions of a batch."""
        return self.model(**batch.model_inputs, normalizer=self._normalizer(batch))

    def _normalizer(self, batch: Batch) -> Tensor | None:
        """What the summed loss is divided by: the weights of the whole optimizer step, over all ranks.

        So that accumulated and distributed batches of unequal content give exactly the gradient of one big
        batch. None for a batch on its own, which is divided by its own weights.
        """
        if batch.step_counts is None or not self.training:
            return None
        return self.model.normalizer(*batch.step_counts.unbind())

    # ------------------------------------------------------------------ training

    def on_fit_start(self) -> None:
        """Choose the kernels for the device and the precision that training runs in, and say which."""
        dtype = compute_dtype(self.trainer, learned_dtype(self.model))
        refuse_mixed_types(self.model, dtype, self.backbone_config)
        attention = choose_attention(self.backbone_config.attention, self.device, dtype, self.model.is_causal)
        self.model.use_attention(attention.name)
        self.train_measures = self._measures("train")
        options = self.pointer_config
        loss = choose_loss(options.loss_implementation, self.device, dtype, options.z_top_k)
        rank_zero_info(f"{attention.line}\n{loss.line}")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        self.model.verify_loss = self.verify_loss > 0 and self.global_step % self.verify_loss == 0
        self.seed_dropout(batch_idx)
        out = self(batch)
        assert out.loss is not None
        assert out.losses is not None
        assert out.terms is not None
        if self._data is not None:
            self._data.consumed(batch)
        if self._is_nonfinite(out.loss):
            self._skip(out, batch)
            return self._nothing(batch)
        self.train_measures.note(out, batch)
        self._log_losses(out, batch)
        return out.loss

    def _log_losses(self, out: PointAndCopyOutput, batch: Batch) -> None:
        losses = self._of_all_ranks(out)
        if not len(batch):  # a blank batch has nothing to say, and zero would look like a success
            return
        self.log("loss", losses[LOSS], prog_bar=True, logger=False, batch_size=len(batch))
        self.log_dict({TRAIN + name: loss for name, loss in losses.items()}, batch_size=len(batch))
        if out.verified is not None:
            self.log(LOSS_ERROR, out.verified, batch_size=len(batch))

    def _of_all_ranks(self, out: PointAndCopyOutput) -> dict[str, Tensor]:
        """The loss and its parts: at the steps that are logged over all ranks, else of this one."""
        assert out.losses is not None
        assert out.terms is not None
        if self.trainer.world_size == 1 or (self.global_step + 1) % self._log_every:
            parts = {loss_part("", name): part.detach() for name, part in out.losses.items()}
            return {LOSS: torch.stack(list(parts.values())).sum(), **parts}
        means = LossMeans(self.pointer_config.z_weight).to(self.device)
        means.update(out.terms.values, out.terms.weights)
        return means.compute()

    @property
    def _log_every(self) -> int:
        return max(1, getattr(self.trainer, "log_every_n_steps", 50))

    def _log_train_measures(self) -> None:
        """How well it points, and the losses of sources, over all batches since they were logged last."""
        if not self.train_measures.noted:  # alike on all ranks, as batches are skipped on all or none
            return
        self.train_measures.count()
        losses, pointing = self.train_measures.compute()
        self.train_measures.reset()
        pointing |= {name: value for name, value in losses.items() if "/" in name}
        self.log_dict({TRAIN + name: value for name, value in pointing.items()})
        self.log("pointing", pointing["pointer_first_in_region"], prog_bar=True, logger=False)

    def _is_nonfinite(self, loss: Tensor) -> bool:
        """The same on every rank where batches may be skipped: a rank that skips alone hangs the others."""
        bad = ~torch.isfinite(loss.detach())
        if self.on_nonfinite == "skip" and self.trainer.world_size > 1:
            bad = self.trainer.strategy.reduce(bad.float(), reduce_op="sum") > 0
        return bool(bad)

    def _skip(self, out: PointAndCopyOutput, batch: Batch) -> None:
        assert out.loss is not None
        self.nonfinite += 1
        names = ", ".join(batch.ids)
        what = f"the loss is {out.loss.item()} at step {self.global_step} for the examples {names}"
        if self.on_nonfinite == "stop":
            raise NonFiniteLossError(
                f"{what}; look at them with `v1lit data show`, lower model.optimizer.lr, or set "
                "model.on_nonfinite=skip"
            )
        if self.nonfinite > self.max_nonfinite:
            raise NonFiniteLossError(
                f"{what}; more than model.max_nonfinite={self.max_nonfinite} batches were skipped"
            )
        self.print(f"skipped a batch ({self.nonfinite} so far): {what}")
        self.log(SKIPPED, float(self.nonfinite), batch_size=len(batch))

    def _nothing(self, batch: Batch) -> Tensor | None:
        """In place of a skipped batch's loss.

        On several ranks, the step's other batches wait for a backward pass to be exchanged in: then zero,
        with a zero gradient of every parameter. One that is divided over ranks gets it in no other way than
        from a whole pass, here of a blank batch.
        """
        if self.model.is_sharded:
            blank = blank_batch(0, flat=batch.segment_lengths is not None).to(self.device)
            return self(blank).loss
        if self.trainer.world_size == 1 or self.trainer.accumulate_grad_batches == 1:
            return None
        trained = (p for p in self.model.parameters() if p.requires_grad)
        return torch.stack([p.flatten()[:0].sum().float() for p in trained]).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if (self.global_step + 1) % self._log_every == 0:
            self._log_train_measures()
            strategy = sharded_strategy(self.trainer)
            gradients = (p.grad for p in self.parameters() if p.grad is not None)
            self.log(GRADIENT_NORM, total_norm(gradients) if strategy is None else strategy.gradient_norm())
            self.log_dict(learning_rates(optimizer.param_groups, self.optimizer_config))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As in Lightning; by norm also where the gradients lie on several meshes of devices."""
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            groups = optimizer.param_groups
            clip_by_norm([p for group in groups for p in group["params"]], gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down with which options it was trained, for `load_from_checkpoint` and for resuming.

        With an average of the weights, it is the checkpoint's weights.
        """
        Resumed(self.options, self.trainer, self._data).save(checkpoint)
        checkpoint[VALIDATED] = {name: float(value) for name, value in self._validated.items()}
        super().on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another model and, of a resumed run, what it cannot change of its recipe.

        Also lets Lightning count the batches of the epoch as they are laid out now.
        """
        trainer = trainer_of(self)
        self.refuse_other_base(checkpoint)
        if trainer is None or trainer.state.fn != TrainerFn.FITTING:
            refuse_other_model(checkpoint, self.options, "the checkpoint")
            return
        run = Resumed(self.options, trainer, self._data)
        refuse_changes(checkpoint, run, str(trainer.ckpt_path))
        carry_over(checkpoint, differences(checkpoint, run.recipe), trainer)
        self._validated = checkpoint.get(VALIDATED, {})
        if run.data is not None:
            align(checkpoint, run.data)

    def on_train_start(self) -> None:
        """Take the optimizer's options from this run: a checkpoint brings those of its own."""
        use_group_options(self.trainer, self._group_options)
        super().on_train_start()

    @property
    def _data(self) -> V1DataModule | None:
        data = getattr(trainer_of(self), "datamodule", None)
        return data if isinstance(data, V1DataModule) else None

    def _measures(self, split: Literal["train", "val"]) -> Measures:
        sources = [] if self._data is None else self._data.source_names(split)
        losses = split == "val" or bool(sources)  # in training, that of the whole is logged by itself
        start, z_weight = self.model.config.pointer_start, self.pointer_config.z_weight
        return Measures(start, self.model.strategy.ends, z_weight, sources, losses).to(self.device)

    # ------------------------------------------------------------------ validation

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self.val_measures = self._measures("val")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.val_measures.note(self(batch), batch)
        self.val_measures.count()

    def on_validation_epoch_end(self) -> None:
        """Log the means over all validation examples; `forced_`: the model was given the true prefix."""
        losses, pointing = self.val_measures.compute()
        forced = {VAL_POINTING + name: value for name, value in pointing.items()}
        self._validated = {VAL + name: value for name, value in losses.items()} | forced
        self.log_dict(self._validated, sync_dist=True)  # that of all ranks; Lightning wants to hear it
        first = pointing["pointer_first_in_region"]
        self.log("val pointing", first, prog_bar=True, logger=False, sync_dist=True)

    # ------------------------------------------------------------------ optimisation

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        config = self.optimizer_config
        named = self.model.named_parameters(remove_duplicate=False)
        optimizer = build_optimizer(named, config, places(self.model, config))
        steps = total_steps(self.trainer)
        check_end(self.trainer, config, steps)
        steps = steps or 1  # of a constant schedule without a warm-up
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, steps, config)
        )
        self._group_options = [{**group, "params": None} for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
