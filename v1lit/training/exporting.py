"""From a checkpoint to a folder that `v1lit.load` opens: weight by weight, and compared with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from v1lit.backbones.adapters.folder import adapter_folder, base_config
from v1lit.backbones.processor import Processor, load_processor
from v1lit.errors import first_of
from v1lit.files import aside
from v1lit.inference.generating import settle
from v1lit.parallel.weight_stream import (
    Plan,
    exported_names,
    plan_files,
    published_names,
    write_config,
    write_weights,
)
from v1lit.pointer.adapted import base_dtype, kept_names, put, save_adapter
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.model_config import PointAndCopyConfig
from v1lit.pointer.published import write_published_config
from v1lit.pointer.published_processor import save_published_processor
from v1lit.training.adapted import BASE
from v1lit.training.card import Origin, write_card
from v1lit.training.comparing import (
    LOGITS,
    NOTHING,
    SPARE,
    ExportMismatchError,
    Layout,
    Source,
    available_memory,
    compare_adapter,
    compare_logits,
    logits,
    open_export,
    same,
    too_little,
)
from v1lit.training.lightning_internals import options_of, weights_of
from v1lit.training.module import V1Module
from v1lit.training.remote_code import FILE as REMOTE
from v1lit.training.remote_code import compare_remote, refuse_remote_code, write_remote_code
from v1lit.training.saved_state import like, read_checkpoint

Check = Literal["auto", "logits", "tensors", "none"]
MODEL = "model."
"""Begins the names of a `PointAndCopyModel`'s weights in a checkpoint."""
SHARD_BYTES = 5 * 10**9
"""Of a file of weights, as many as transformers took for years."""


@dataclass(frozen=True)
class ExportOptions:
    """How a checkpoint is exported."""

    layout: Layout = "v1lit"
    """What `v1lit.load` opens, or that of the published v1-7B."""
    dtype: str | None = None
    """Of the parameters, such as `bfloat16`; None for the checkpoint's own."""
    backbone: str | None = None
    """Where config and tokenizer of the backbone lie now; None for where they lay."""
    shard_bytes: int = SHARD_BYTES
    """Most bytes of a file."""
    check: Check = "auto"
    """What is compared with the checkpoint: the logits of a prompt, which opens both models one after the
    other, or every tensor by itself; `auto` compares logits where a model fits into memory."""
    remote_code: bool = False
    """Whether the folder gets the file that opens it without v1lit."""


@dataclass(frozen=True)
class Exported:
    """What has been written."""

    tensors: int
    bytes: int
    files: int
    check: str
    """What was compared, and why not more, in words."""


def export_checkpoint(path: Path, out: Path, options: ExportOptions | None = None) -> Exported:
    """Write the model of a checkpoint, a file or a folder, to a new folder, whole or not at all.

    Neither a GPU nor the whole model is needed: one file's weights and one more are in memory, until both
    models are compared. Raises ValueError for what is no checkpoint, for weights that do not fit the model,
    for a folder that is there already and for options that a layout cannot hold, and ExportMismatchError.
    """
    options = options or ExportOptions()
    if out.exists():
        raise ValueError(f"{out} exists already; name a new folder")
    source = CheckpointSource.open(path, options)
    if source.has_adapters:
        return _export_adapter(source, out, options)
    model = source.empty_model()
    finish = finishing(model, source.origin, options)
    with writing(out, model, source.settled_processor, source.read, options) as (folder, plan):
        check = finish(folder, check_written(folder, source, plan, options))
    return Exported(len(plan.names), plan.bytes, len(plan.shards), check)


def finishing(model: PointAndCopyModel, origin: Origin, options: ExportOptions) -> Callable[[Path, str], str]:
    """What puts code and card into a folder that was written and compared; it says what was compared.

    Called before anything is written: raises ValueError for a model that remote code does not serve.
    """
    if options.remote_code:
        if options.layout == "published":
            raise ValueError(
                "remote code opens v1lit's layout\nleave out --layout=published or --remote-code"
            )
        assert isinstance(model.config, PointAndCopyConfig)
        refuse_remote_code(model.config)

    def finish(folder: Path, check: str) -> str:
        if options.remote_code:
            write_remote_code(folder)
            if options.check in ("auto", "logits") and check.startswith(LOGITS):
                check += f"\n{compare_remote(folder)}"
        write_card(folder, origin, check, REMOTE if options.remote_code else None)
        return check

    return finish


@contextmanager
def writing(
    out: Path,
    model: PointAndCopyModel,
    processor: Callable[[PointAndCopyModel], Processor],
    read: Callable[[str], Tensor],
    options: ExportOptions,
) -> Iterator[tuple[Path, Plan]]:
    """Write a model aside, hand its folder on to be compared, and give it its name when that went well.

    What is handed on is the folder and which weights are in which file; the model is let go before.

    Args:
        out: the new folder.
        model: whose config is written; its weights may be on `meta`.
        processor: makes that of the model.
        read: gives a weight by the model's name.
        options: layout and size of the files.
    """
    published = options.layout == "published"
    plan = plan_files(model, (published_names if published else exported_names)(model), options.shard_bytes)
    out.parent.mkdir(parents=True, exist_ok=True)
    with aside(out) as unfinished:
        unfinished.mkdir()
        if published:
            write_published_config(unfinished, model)
            save_published_processor(processor(model), unfinished)
        else:
            made = processor(model)
            write_config(unfinished, model)
            made.save_pretrained(unfinished)
        write_weights(unfinished, plan, model, read)
        del model, read
        yield unfinished, plan


class CheckpointSource:
    """A checkpoint, as weights of the model that it holds."""

    def __init__(
        self,
        path: Path,
        weights: Mapping[str, Tensor],
        module: V1Module,
        dtype: torch.dtype | None,
        base: str | None = None,
    ) -> None:
        self.path, self.weights, self.module, self.dtype = path, weights, module, dtype
        self.fingerprint = base
        """Of the backbone that its adapters belong to."""

    @classmethod
    def open(cls, path: Path, options: ExportOptions) -> CheckpointSource:
        """A checkpoint, a file or a folder, of which nothing but its options is read yet."""
        content = read_checkpoint(path)
        module = V1Module(**options_of(content))
        backbone = replace(
            module.backbone_config, freeze=[], gradient_checkpointing=[], compile=[], attention="sdpa"
        )
        module.backbone_config = replace(backbone, weights=options.backbone or backbone.weights)
        dtype = None if options.dtype is None else getattr(torch, options.dtype)
        return cls(path, weights_of(content), module, dtype, content.get(BASE))

    def read(self, name: str) -> Tensor:
        """A weight by the model's name."""
        return self.weights[MODEL + name]

    @property
    def has_adapters(self) -> bool:
        """Whether it holds adapters, and of their backbone nothing else that is not trained."""
        made_of = self.module
        return bool(made_of.adapter_config) or adapter_folder(made_of.backbone_config.weights) is not None

    def empty_model(self, as_written: bool = True) -> PointAndCopyModel:
        """The model on `meta`, its parameters of the types in which they are written, or of their own.

        Raises ValueError unless the checkpoint has exactly its weights.
        """
        model, kind = self.build(empty=True), self.dtype if as_written else None
        for name, parameter in model.named_parameters():
            if MODEL + name in self.weights:
                parameter.data = parameter.data.to(kind or like(self.weights, MODEL + name).dtype)
        return model

    def build(self, empty: bool) -> PointAndCopyModel:
        """The model as its run began, its parameters on `meta` if `empty`.

        Raises ValueError unless the checkpoint has exactly the weights of it that are saved.
        """
        made_of = self.module
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(made_of.init_seed)
            model = PointAndCopyModel.build(
                made_of.backbone_config,
                made_of.pointer_config,
                made_of.revisit_config,
                empty=empty,
                adapter=made_of.adapter_config,
            )
        self._refuse_misfit(model)
        return model

    def _refuse_misfit(self, model: PointAndCopyModel) -> None:
        """Raise ValueError unless the checkpoint has exactly the weights of a model that are saved."""
        if model.base is not None and self.fingerprint not in (None, model.base.fingerprint):
            raise ValueError(
                f"{self.path} has adapters of another backbone: {model.base.weights} has other weights now\n"
                "say where its own lies, with --backbone"
            )
        kept = kept_names(model) if model.adapter else model.state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        wanted = {name: shapes[name] for name in kept}
        held = {name.removeprefix(MODEL): tuple(like(self.weights, name).shape) for name in self.weights}
        problems = {
            "missing": wanted.keys() - held.keys(),
            "unexpected": held.keys() - wanted.keys(),
            "of another shape": {name for name in wanted.keys() & held.keys() if held[name] != wanted[name]},
        }
        for what, names in problems.items():
            if names:
                raise ValueError(
                    f"{self.path} does not fit its model; weights {what}: {first_of(sorted(names))}"
                )

    def whole_model(self, as_written: bool = True) -> PointAndCopyModel:
        """The model with its weights, of the types in which they are written, or of their own."""
        model = self.empty_model(as_written)
        types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        model.load_state_dict({name: self.read(name).to(kind) for name, kind in types.items()}, assign=True)
        model.tie_weights()
        return model

    def adapted_model(self) -> PointAndCopyModel:
        """Of a checkpoint with adapters: the model with its backbone."""
        model = self.build(empty=False)
        put(model, {name: self.read(name) for name in kept_names(model)})
        return model.eval()

    @property
    def origin(self) -> Origin:
        """For its card."""
        return Origin.of(base_config(self.module.backbone_config).weights, self.path)

    def processor(self, model: PointAndCopyModel) -> Processor:
        """The backbone's."""
        return load_processor(self.module.backbone_config, model.config.pointer_start, model.strategy)

    def settled_processor(self, model: PointAndCopyModel) -> Processor:
        """The backbone's, and the model set to generate as a `Predictor` does."""
        made = self.processor(model)
        settle(model, made)
        return made


def _export_adapter(source: CheckpointSource, out: Path, options: ExportOptions) -> Exported:
    """Write what was trained beside the frozen backbone, which is not looked at but for its fingerprint."""
    if options.layout == "published":
        why = "the published layout holds whole models, and this is an adapter\nmerge it: --merge"
        raise ValueError(f"{source.path}: {why}")
    if options.remote_code:
        why = "remote code opens whole models, and this is an adapter\nmerge it: --merge"
        raise ValueError(f"{source.path}: {why}")
    model = source.empty_model()
    for name in kept_names(model):
        module, _, own = name.rpartition(".")
        parameter = model.get_parameter(name)
        value = source.read(name).to(parameter.dtype)
        setattr(model.get_submodule(module), own, nn.Parameter(value, requires_grad=False))
    out.parent.mkdir(parents=True, exist_ok=True)
    with aside(out) as unfinished:
        save_adapter(model, unfinished)
        source.processor(model).save_pretrained(unfinished)
        check = _check_adapter(unfinished, source, model, options)
        write_card(unfinished, source.origin, check)
        size = sum(path.stat().st_size for path in unfinished.glob("*.safetensors"))
    return Exported(len(kept_names(model)), size, 2, check)


# ------------------------------------------------------------------ compared


def _check_adapter(
    folder: Path, source: CheckpointSource, model: PointAndCopyModel, options: ExportOptions
) -> str:
    """As `_check`, of an adapter: its weights, and its logits beside its backbone."""
    if options.check == "none":
        return NOTHING
    words = compare_adapter(folder, source.read, model)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    free, needed = available_memory(), SPARE * size
    if options.check == "tensors":
        return words
    if options.check == "auto" and free is not None and free < needed:
        return f"{words}; {too_little(needed, free)}"
    whole = source.adapted_model()
    before = logits(whole, source.processor(whole))
    del whole
    after = logits(opened := open_export(folder, "v1lit"), source.processor(opened))
    kind = base_dtype(opened)
    return f"{words}\n{compare_logits(before, after, kind, than=f'{source.path}')}"


def check_written(folder: Path, source: Source, plan: Plan, options: ExportOptions) -> str:
    """Compare what was written as the options say; returns what was compared, in words."""
    if options.check == "none":
        return NOTHING
    free, needed = available_memory(), SPARE * plan.bytes
    if options.check == "logits" or (options.check == "auto" and (free is None or free >= needed)):
        return _compare_logits(folder, source, options.layout)
    words = compare_tensors(folder, source, plan)
    if options.check == "auto" and free is not None:
        words += f"; {too_little(needed, free)}"
    return words


def compare_tensors(folder: Path, source: Source, plan: Plan) -> str:
    """Compare every tensor bit for bit; returns that in words. Raises ExportMismatchError."""
    for file, shard in plan.shards.items():
        with safe_open(folder / file, "pt") as written:
            for name, own in shard.items():
                tensor = written.get_tensor(name)
                if not same(tensor, source.read(own).to(tensor.dtype)):
                    raise ExportMismatchError(f"{name} was not written as {source.path} holds it")
    return f"all {len(plan.names)} tensors are equal to the checkpoint's, bit for bit"


def _compare_logits(folder: Path, source: Source, layout: Layout) -> str:
    model = source.whole_model()
    expected = logits(model, source.processor(model))
    del model
    opened = open_export(folder, layout)
    found = logits(opened, source.processor(opened))
    said = compare_logits(expected, found, torch.float32, than=f"{source.path}")
    if source.dtype is None:
        return said
    own = source.whole_model(as_written=False)
    rounded = compare_logits(
        logits(own, source.processor(own)), found, own.dtype, source.dtype, than=f"{source.path}"
    )
    kinds = [str(kind).removeprefix("torch.") for kind in (source.dtype, own.dtype)]
    return f"{said}\nin {kinds[0]}; from the checkpoint's own {kinds[1]}: {rounded}"
