"""What a `config.json` is that no family reads, by its keys alone: half a model, or another's layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ORIGINAL_LLAVA = {
    "LlavaLlamaForCausalLM": ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-v1.6-vicuna-7b-hf"),
    "LlavaMistralForCausalLM": ("llava-hf/llava-v1.6-mistral-7b-hf",) * 2,
    "LlavaQwenForCausalLM": ("llava-hf/llava-onevision-qwen2-7b-ov-hf",) * 2,
}
"""Classes of the LLaVA repositories, and who has their weights in the transformers layout: of models that see
an image as one square, and of those that cut it into tiles."""


def explain_original_llava(config: Mapping[str, Any], weights: str) -> str | None:
    """That the weights are in the layout of LLaVA's own code, and where they are in that of transformers."""
    names = [name for name in config.get("architectures") or [] if name in ORIGINAL_LLAVA]
    if not names:
        return None
    square, tiles = ORIGINAL_LLAVA[names[0]]
    cut = "anyres" in str(config.get("image_aspect_ratio"))
    return (
        f"{weights} is a {names[0]}, in the layout of LLaVA's own code, which v1lit does not run\n"
        f"take the same weights in the transformers layout, named with -hf: {tiles if cut else square}"
    )


def explain_half(config: Mapping[str, Any], weights: str, whole: str) -> str | None:
    """That the config is of a language model or a vision tower alone; `whole` is a model that has both."""
    if "vocab_size" in config and not any("vis" in key for key in config):
        what, missing = "a language model", "vision tower and projector"
    elif "patch_size" in config and not {"vocab_size", "text_config", "vision_config"} & config.keys():
        what, missing = "a vision tower", "language model and projector"
    else:
        return None
    return (
        f"{weights} is {what} alone (model_type {config.get('model_type')!r}): it lacks {missing}\n"
        f"give a whole vision-language model, such as {whole}"
    )


def explain_absent(parts: Mapping[str, set[str]], missing: set[str], weights: str, whole: str) -> str | None:
    """That parts of a model are missing from its files altogether.

    Args:
        parts: names of the weights of each part.
        missing: names of weights that the files lack.
        weights: where the files are.
        whole: a checkpoint that has all parts.
    """
    absent = [part for part, names in parts.items() if names and names <= missing]
    if not absent:
        return None
    count, first = sum(len(parts[part]) for part in absent), min(parts[absent[0]])
    return (
        f"{weights} lacks {' and '.join(absent)} altogether, {count} weights such as {first}\n"
        f"take the whole checkpoint, for instance {whole}, or the one that these weights were taken from"
    )
