"""What a `PointAndCopyModel` is made of, and how it is built, opened and saved."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from v1lit.backbones.adapters.config import NONE, AdapterConfig
from v1lit.backbones.adapters.folder import (
    AdapterFolder,
    Base,
    adapter_folder,
    resolved,
)
from v1lit.backbones.adapters.inject import Injected, inject
from v1lit.backbones.adapters.layers import refuse_frozen
from v1lit.backbones.attention import set_attention, stock_attention, use_segments
from v1lit.backbones.classes import named_class
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.contract import Backbone
from v1lit.backbones.efficiency import compile_layers, enable_checkpointing
from v1lit.backbones.folder import check_exported
from v1lit.backbones.hub import looks_local
from v1lit.backbones.image_blocks import windows
from v1lit.backbones.load import freeze, refuse_incomplete
from v1lit.backbones.registry import get_backbone
from v1lit.paths import expand_path
from v1lit.pointer.adapted import (
    base_dtype,
    base_of,
    check_base,
    check_options,
    kept_names,
    load_base,
    put,
    read_adapter,
    save_adapter,
    started,
)
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.head import PointerHead
from v1lit.pointer.model_config import PointAndCopyConfig
from v1lit.pointer.published import load_published
from v1lit.revisit.config import RevisitConfig
from v1lit.revisit.registry import make_strategy
from v1lit.revisit.strategy import LookModule

Model = TypeVar("Model", bound="PointAndCopyBase")
Result = TypeVar("Result")

WITH_WEIGHT = "with_weight"
"""Method of a head whose weight is divided over ranks: gathers it, and calls a function with it."""


class PointAndCopyBase(PreTrainedModel):
    """A stock backbone with a pointer head beside it; `PointAndCopyModel` says how the two work together.

    Args:
        config: of the backbone and of the pointer.
        backbone: a model of `config.backbone_config`; a random one when not given.
    """

    config_class = PointAndCopyConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")  # type: ignore[assignment]  # any sequence of names will do
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    accepts_loss_kwargs = False

    def __init__(self, config: PointAndCopyConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.family: Backbone = get_backbone(config.family)
        if backbone is None:
            backbone = named_class(self.family.model_class)._from_config(config.backbone_config)
        self.backbone = self.family.prepare(backbone)
        self._is_stateful = backbone._is_stateful  # what cannot be undone, assisted generation would undo
        if self.family.packs:
            use_segments(self.backbone.config.get_text_config())
        self.verify_loss = False
        """Whether the loss is compared with its readable reference; raises `LossMismatchError`."""
        self.is_sharded = False
        """Whether the weights are divided over ranks, which then do everything together."""
        self.attention = "sdpa"
        """Kernel that attends inside the segments of packed rows; see `v1lit.backbones.attention`."""
        self.adapter: AdapterConfig = NONE
        """Options of the adapters beside the backbone's layers."""
        self.base: Base | None = None
        """With adapters: the backbone that they belong to."""
        self.injected: Injected | None = None
        """With adapters: which parameters of the backbone are trained."""
        self.pointer_options = config.pointer_options
        hidden = config.get_text_config().hidden_size
        self.width = hidden * (1 + self.family.deep_layers(config.backbone_config))
        """Of an image token's input: its embedding, and behind it what enters further decoder layers."""
        self.strategy = make_strategy(config.revisit_options)
        if self.strategy.points:
            self.family.refuse_pointing(config.backbone_config)
        self.pointer_head = PointerHead(hidden, self.pointer_options, self.strategy.ends)
        self.look = self.strategy.learned(hidden)
        self.post_init()

    @classmethod
    def build(
        cls: type[Model],
        backbone: BackboneConfig,
        pointer: PointerConfig | None = None,
        revisit: RevisitConfig | None = None,
        empty: bool = False,
        adapter: AdapterConfig = NONE,
    ) -> Model:
        """A model with a fresh pointer head on the backbone's weights; tiny backbones are random.

        Parts named in `backbone.freeze` do not learn; with an `adapter`, nothing of the backbone does but
        what it names. Where `backbone.weights` is an adapter's folder, heads and adapters are those. With
        `empty`, parameters are on `meta`, to be filled by `v1lit.parallel.fill` once the model is cut. Raises
        what `load_backbone` raises, and ValueError for an adapter that does not fit.
        """
        backbone, adapter, found = resolved(backbone, adapter)
        model = cls._on(backbone, pointer, revisit, empty, adapter, found)
        freeze(model.backbone, model.family, [part for part in backbone.freeze if part != "pointer"])
        if "pointer" in backbone.freeze:
            for own in model.own_parts:
                own.requires_grad_(False)
        enable_checkpointing(model.backbone, model.family, backbone.gradient_checkpointing)
        compile_layers(model.backbone, model.family, backbone.compile)
        return model

    @classmethod
    def from_adapter(cls: type[Model], found: AdapterFolder, dtype: Any = None, alike: bool = True) -> Model:
        """Open an adapter with its backbone, to ask it or to merge it.

        Args:
            found: the adapter's folder.
            dtype: of the backbone; `auto` or None for that in which it was trained.
            alike: whether what was trained gets that type too; else it stays float32.

        Raises what `build` raises.
        """
        kind: Any = str(dtype or "auto").removeprefix("torch.")
        kind = found.base.dtype if kind == "auto" else kind
        backbone = found.base.config(BackboneConfig(dtype=kind))
        pointer, revisit = found.config["pointer"], found.config["revisit"]
        model = cls._on(
            backbone, PointerConfig(**pointer), RevisitConfig(**revisit), False, found.adapter, found
        )
        kept = base_dtype(model)
        for name in kept_names(model) if alike else ():
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.to(kept)
        return model.eval()

    @classmethod
    def _on(
        cls: type[Model],
        backbone: BackboneConfig,
        pointer: PointerConfig | None,
        revisit: RevisitConfig | None,
        empty: bool,
        adapter: AdapterConfig,
        found: AdapterFolder | None,
    ) -> Model:
        """A model on a backbone that is no adapter's folder, with the adapters of the folder `found`."""
        inner = load_base(backbone, empty, adapter, found)
        config = PointAndCopyConfig(
            inner.config,
            backbone.name,
            pointer=asdict(pointer or PointerConfig()),
            revisit=asdict(revisit or RevisitConfig()),
        )
        with torch.random.fork_rng(devices=[]), torch.device("meta") if empty else nullcontext():
            model = cls(config, backbone=inner)
        model.refuse_tied_gate()
        if not empty:
            model.init_pointer()
        for part in model.own_parts:
            part.to(dtype=torch.float32 if adapter else inner.dtype, device=inner.device)
        model.generation_config = inner.generation_config
        if adapter:
            model._adapt(backbone, adapter, found, empty)
        return model

    def _adapt(
        self, backbone: BackboneConfig, adapter: AdapterConfig, found: AdapterFolder | None, empty: bool
    ) -> None:
        """Put adapters into the backbone, with their values unless the model is empty."""
        refuse_frozen(backbone, adapter)
        self.base = base_of(backbone, torch.initial_seed() if found is None else found.base.seed)
        if found is not None:
            check_base(self, found, self.base)
            check_options(found, self.pointer_options, self.config.revisit_options)
        self.adapter = adapter
        self.injected = inject(self.backbone, self.family, adapter, packed=not empty)
        if not empty:
            put(self, self.first_values(found))

    def first_values(self, found: AdapterFolder | None) -> dict[str, Tensor]:
        """With adapters: what they begin with, by name; of a folder, all that was trained."""
        return started(self, torch.initial_seed()) if found is None else read_adapter(self, found)

    def use_attention(self, kernel: str) -> None:
        """Attend inside the segments of packed rows with this kernel, chosen by `choose_attention`.

        The vision tower and generation follow where the kernel's library offers them something.
        """
        if self.family.packs:
            self.attention = kernel
            set_attention(self.backbone, kernel, self.family.whole_images)
            stock = stock_attention(kernel, self.family.whole_images)
            self.config._attn_implementation_internal = stock  # `generate` asks this one

    @property
    def is_causal(self) -> bool:
        """Whether every token of the decoder sees all those before it and none behind it."""
        return not self.family.whole_images and not any(windows(self.config.get_text_config()))

    def init_pointer(self) -> None:
        """Start the head as in `PointerHead.init_weights`; with a gate, double `lm_head` to undo g = 1/2.

        Source: jun297/v1, v1/modeling_v1.py, lines 74-80. Raises ValueError for a gate on a tied `lm_head`.
        """
        self.refuse_tied_gate()
        for part in self.own_parts:
            part.init_weights(self.pointer_std)
        self.double_head()

    @property
    def own_parts(self) -> list[PointerHead | LookModule]:
        """What is no part of the backbone: the pointer head, and what the revisit strategy learns."""
        return [self.pointer_head, *([] if self.look is None else [self.look])]

    @property
    def pointer_std(self) -> float:
        """Standard deviation of the pointer head's weights at the start: that of the backbone's."""
        return float(getattr(self.config.get_text_config(), "initializer_range", 0.02))

    def normalizer(self, text: Tensor, pointers: Tensor, runs: Tensor) -> Tensor:
        """What a loss over these numbers of supervised tokens is divided by; `[]` each.

        Args:
            text: tokens that are no pointers.
            pointers: all of them.
            runs: those that begin a run.
        """
        pointers = pointers + (self.pointer_options.first_pointer_weight - 1.0) * runs
        parts = [text + pointers] if self.pointer_options.loss == "joint" else [text, pointers]
        parts += [runs] if self.strategy.regions_weight else []
        return torch.stack(parts) if len(parts) > 1 else parts[0]

    def refuse_tied_gate(self) -> None:
        """Raise ValueError for a gate on an `lm_head` that is tied to the input embeddings."""
        tied = self.get_output_embeddings().weight is self.get_input_embeddings().weight
        if self.pointer_options.gate and tied:
            raise ValueError(
                "pointer.gate doubles the language-model head at the start, but this backbone ties it to "
                "the input embeddings; set tie_word_embeddings to false, or pointer.gate to false"
            )

    def double_head(self) -> None:
        """With a gate, double `lm_head`: the gate starts at 1/2."""
        if self.pointer_options.gate:
            self.get_output_embeddings().weight.data.mul_(2.0)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # stricter
        """Open a folder that `save_pretrained` wrote; options as in transformers.

        An adapter's folder is opened with its backbone, from where it lay or from `base`; of the options it
        takes `dtype`.
        Raises ValueError for a folder of another kind, for files that are missing or damaged, and for weights
        that are missing, unexpected or of another shape, by name. Pickled weights are never opened.
        """
        folder = expand_path(folder)
        if (found := adapter_folder(folder, kwargs.pop("base", None))) is not None:
            return cls.from_adapter(found, *args, **kwargs)
        if Path(folder).exists() or looks_local(str(folder)):
            check_exported(Path(folder, kwargs.get("subfolder") or ""))
        kwargs["use_safetensors"] = True
        with_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(folder, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        refuse_incomplete(info, folder)
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write the model into a folder that `from_pretrained` opens; options as in transformers.

        Of a model with adapters, only what was trained.
        """
        if self.adapter:
            save_adapter(self, Path(expand_path(save_directory)))
            return
        super().save_pretrained(expand_path(save_directory), *args, **kwargs)

    @classmethod
    def from_published(
        cls: type[Model], folder: str | Path, dtype: torch.dtype | None = None, attention: str = "sdpa"
    ) -> Model:
        """Open a checkpoint in the layout of the published v1-7B; see `v1lit.pointer.published`."""
        return load_published(folder, cls, dtype, attention)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, PointerHead | LookModule):
            module.init_weights(self.pointer_std)

    def get_input_embeddings(self) -> nn.Embedding:
        return cast(nn.Embedding, self.backbone.get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        return cast(nn.Linear, self.backbone.get_output_embeddings())

    def with_head(self, hidden: Tensor, run: Callable[[Tensor, Tensor], Result]) -> Result:
        """What `run` returns for `hidden` and the language-model head's whole weight `[vocabulary, hidden]`.

        Where the weight is divided over ranks, it is gathered for this call and for its backward pass.
        """
        head = self.get_output_embeddings()
        gathered = getattr(head, WITH_WEIGHT, None)
        result: Result = run(hidden, head.weight) if gathered is None else gathered(hidden, run)
        return result

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.backbone.set_output_embeddings(new_embeddings)
