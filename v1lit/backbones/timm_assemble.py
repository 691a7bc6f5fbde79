"""One folder of a vision tower, a fresh projector and a language model: what `v1lit assemble` writes.

The folder is a checkpoint like any other, in the layout of `TimmForConditionalGeneration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.contract import Backbone
from v1lit.backbones.folder import check_stock_folder, check_weight_files
from v1lit.backbones.hub import hub_errors
from v1lit.backbones.load import check_weights, refuse_incomplete
from v1lit.backbones.processor import Processor
from v1lit.backbones.registry import get_backbone
from v1lit.backbones.timm_config import TimmLMConfig, check_language
from v1lit.backbones.timm_lm import TimmLM, decided, tower_options
from v1lit.backbones.timm_model import TimmForConditionalGeneration, init_projector
from v1lit.backbones.timm_pretrained import find_tower, pretrained_tower
from v1lit.backbones.timm_projectors import make_projector
from v1lit.backbones.vocabulary import load_tokenizer
from v1lit.errors import OptionError, one_line
from v1lit.files import aside

Dtype = Literal["float32", "bfloat16", "float16", "auto"]


@dataclass(frozen=True)
class Parts:
    """What a model is assembled of."""

    tower: str
    """Name of an architecture in timm, whose weights timm fetches, or a safetensors file or its folder."""
    language: str
    """Folder or hub id of a causal language model of transformers, with its tokenizer."""
    architecture: str | None = None
    """Of a tower that is given as a file, where no config.json beside it says so."""
    tower_arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `timm.create_model`, such as `img_size`."""
    feature_layers: Sequence[int] = (-1,)
    """Layers or stages whose features stand side by side."""
    projector: str = "mlp"
    """A name in `v1lit.backbones.timm_projectors.KINDS`."""
    projector_scale: int = 2
    """Patches on each side of a token, for projectors that make one of several."""
    projector_tokens: int = 64
    """Of an image, for a resampler."""
    family: str = "timm_lm"
    """Registered backbone: `timm_lm`, or a subclass of yours with the marks of another chat."""
    dtype: Dtype = "auto"
    """Of the weights; `auto` takes the language model's own."""


@dataclass(frozen=True)
class Assembled:
    """What was written."""

    parameters: dict[str, int]
    """Of each part."""
    grid: str
    """What an image becomes, in words."""
    left_out: list[str]
    """Modules of the tower's weights that no feature depends on."""
    added: list[str]
    """Tokens that the tokenizer lacked."""


def assemble(parts: Parts, out: Path) -> Assembled:
    """Write the folder `out`, aside and then renamed; the projector is drawn at random, seed torch before.

    Raises OptionError or ValueError for parts that do not fit each other, before their weights are read where
    that can be known; FileExistsError for a folder that has something in it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty; give a new folder")
    family = _family(parts.family)
    source = find_tower(parts.tower, parts.architecture, parts.tower_arguments, parts.feature_layers)
    text = _language_config(parts.language)
    config = TimmLMConfig(
        text_config=text,
        tower=source.tower.name,
        tower_arguments=dict(parts.tower_arguments),
        feature_layers=list(parts.feature_layers),
        projector=parts.projector,
        projector_scale=parts.projector_scale,
        projector_tokens=parts.projector_tokens,
    )
    options = family.complete({**tower_options(config), **decided(config)})
    family.check_fit(options, config)
    tokenizer = load_tokenizer(parts.language, parts.language)
    added = _add_image_token(tokenizer, family, parts.language)
    tower, left_out = pretrained_tower(source)
    language = _language_model(parts, max(tokenizer.get_vocab().values()) + 1)
    config.text_config = language.config
    config.image_token_id = tokenizer.get_vocab()[family.chat.image_token]
    model = _joined(config, tower, language)
    facts = config.tower_facts
    pixels: dict[str, Any] = {
        "image_mean": list(facts.mean),
        "image_std": list(facts.std),
        "resample": facts.resample,
    }
    image_processor = family.image_processor(**{**tower_options(config), **decided(config)}, **pixels)
    rows = language.config.get_text_config().vocab_size
    processor = Processor(family, tokenizer, image_processor, rows)  # raises for marks that are no tokens
    with aside(out) as folder:
        model.save_pretrained(folder)
        processor.tokenizer.save_pretrained(folder)
        image_processor.processor.save_pretrained(folder)
        check_weights(BackboneConfig(parts.family, weights=str(folder)))
        if out.is_dir():
            out.rmdir()
    counts = {
        part: sum(weight.numel() for weight in model.get_submodule(path).parameters())
        for part, (path,) in family.parts.items()
    }
    return Assembled(counts, _grid(options), left_out, added)


def _family(name: str) -> Backbone:
    family = get_backbone(name)
    if not isinstance(family, TimmLM):
        raise OptionError("family", name, "give timm_lm, or a registered subclass of TimmLM")
    return family


def _language_config(language: str) -> Any:
    """The config of a causal language model. Raises ValueError for one of another kind."""
    with hub_errors(language):
        if Path(language).exists():
            check_stock_folder(Path(language))
        try:
            config = AutoConfig.from_pretrained(language, trust_remote_code=False)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{language}: transformers knows no such model: {one_line(error)}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping or hasattr(config, "vision_config"):
        raise ValueError(
            f"{language} is a {config.model_type!r}, not a causal language model of transformers\n"
            "give one such as Qwen/Qwen3-8B; a vision-language model is trained as it is, by its own family"
        )
    check_language(config)
    if Path(language).exists():
        check_weight_files(Path(language), config.vocab_size)
    return config


def _add_image_token(tokenizer: Any, family: Backbone, language: str) -> list[str]:
    """Give the tokenizer the token of images, if it lacks it; the marks of a chat it must have."""
    from tokenizers import AddedToken

    vocabulary, chat = tokenizer.get_vocab(), family.chat
    missing = [mark for mark in (chat.stop, *chat.tokens) if mark not in vocabulary]
    if missing:
        raise ValueError(
            f"{language}: its tokenizer has no {missing[0]!r}, a mark of conversations of {family.name}\n"
            "take an instruction-tuned model that knows ChatML, or give the marks of this one: a registered "
            "subclass of TimmLM with its own `chat`, named by --family (docs/backbones.md)"
        )
    if chat.image_token in vocabulary:
        return []
    tokenizer.add_tokens([AddedToken(chat.image_token, special=True, normalized=False)])
    return [chat.image_token]


def _language_model(parts: Parts, tokens: int) -> PreTrainedModel:
    """The language model with its weights, and a row of embeddings for every token."""
    with hub_errors(parts.language):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            parts.language, dtype=parts.dtype, use_safetensors=True, output_loading_info=True
        )
    model, report = loaded
    refuse_incomplete(report, parts.language)
    if tokens > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(tokens)
    language: PreTrainedModel = model
    return language


def _joined(config: TimmLMConfig, tower: nn.Module, language: Any) -> TimmForConditionalGeneration:
    with torch.device("meta"), no_init_weights():
        model = TimmForConditionalGeneration(config)
    projector = make_projector(config.projector_spec)
    init_projector(projector, float(getattr(language.config, "initializer_range", 0.02)))
    model.vision_tower, model.projector = tower.to(language.dtype), projector.to(language.dtype)
    model.language_model = language
    model.config.dtype = language.dtype
    model.generation_config = language.generation_config
    return model.eval()


def _grid(options: dict[str, Any]) -> str:
    """What an image becomes."""
    patch, merge = options["patch_size"], options["merge"]
    if options["tokens"] is not None:
        return f"{options['tokens']} tokens without a place in the image"
    if options["fit"] == "keep":
        most = options["max_tokens"] // merge**2
        return f"at most {most} tokens of {patch * merge} pixels, in the image's own aspect"
    height, width = options["size"]["height"], options["size"]["width"]
    rows, columns = height // patch // merge, width // patch // merge
    return f"{rows} x {columns} tokens of {patch * merge} pixels, of {height} x {width}"
