"""One call of `generate`, with what is noted of it."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from v1lit.backbones.cache_name import CACHE
from v1lit.backbones.processor import Processor
from v1lit.data.encode.batch import collate
from v1lit.errors import OptionError
from v1lit.inference.crops import Answer, generate_with_crops
from v1lit.inference.looks import Seconds
from v1lit.inference.prompt import Prompt
from v1lit.inference.recording import Record, Recording
from v1lit.inference.streaming import PartStreamer
from v1lit.pointer.memory import PointerMemory
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.crop import Crop

OURS = ("return_dict_in_generate", "streamer", "watch", "output_scores", "output_logits")
"""Options of `generate` that are used here, and change what it returns."""
OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Settings that mean nothing, and are warned of, where nothing is drawn."""


@dataclass(frozen=True)
class GeneratedRows:
    """What was generated behind prompts: one row per prompt, or several where several were asked for."""

    ids: list[list[int]]
    records: Sequence[Record | None]
    seconds: Seconds
    cache: Cache | None = None
    """Of all rows; it has read all tokens but the last."""
    memory: PointerMemory | None = None


def generation_options(processor: Processor, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of transformers' `generate`, greedy unless they say otherwise, ended by the processor's mark.

    Raises OptionError for options that would change what comes back.
    """
    for name in OURS:
        if name in options:
            why = "a Predictor sets it itself; `on_part` streams, and predictions have what was found likely"
            raise OptionError(name, options[name], why)
    return {
        "do_sample": False,
        "num_return_sequences": 1,
        "eos_token_id": processor.stop_token_id,
        "pad_token_id": processor.pad_token_id,
        **options,
    }


def settle(model: PointAndCopyModel, processor: Processor) -> None:
    """Have a model's own settings, which are saved with it, generate as a `Predictor` does: the same tokens.

    Those of backbones may sample, or end an answer elsewhere.
    """
    settings = copy.deepcopy(model.generation_config)
    ends = {"eos_token_id": processor.stop_token_id, "pad_token_id": processor.pad_token_id}
    settings.update(do_sample=False, **ends, **dict.fromkeys(OF_SAMPLING))
    model.generation_config = settings


def generate_behind(
    model: PointAndCopyModel,
    processor: Processor,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    max_tokens: int,
    options: Mapping[str, Any],
    told: PartStreamer | None = None,
) -> GeneratedRows:
    """Generate behind every prompt, as the model's strategy wants it.

    Args:
        model: to generate.
        processor: of the model.
        prompts: padded together.
        max_new_tokens: of an answer.
        max_tokens: of an answer with its prompt; of strategies that put images into answers.
        options: as of `generation_options`.
        told: is told of every token.
    """
    if isinstance(model.strategy, Crop):
        return _with_crops(model, processor, prompts, max_new_tokens, max_tokens, options, told)
    encoded = [prompt.encoded for prompt in prompts]
    batch = collate(encoded, processor.pad_token_id, side="left").to(model.device)
    inputs = {"attention_mask": batch.attention_mask, **batch.image_inputs}
    patches = [prompt.image_tokens for prompt in prompts]
    return generate_once(model, processor, batch.input_ids, inputs, patches, max_new_tokens, options, told)


def generate_once(
    model: PointAndCopyModel,
    processor: Processor,
    input_ids: Tensor,
    inputs: Mapping[str, Any],
    patches: Sequence[int],
    max_new_tokens: int,
    options: Mapping[str, Any],
    told: PartStreamer | None = None,
) -> GeneratedRows:
    """Generate behind `input_ids` `[rows, tokens]`, padded on the left, which have these image tokens."""
    copies = options["num_return_sequences"]
    if told is not None:
        rows = len(input_ids) * copies
        told.begin(range(rows), [[]] * rows)
    recording = Recording(model.config.pointer_start)
    out = model.generate(
        input_ids,
        **inputs,
        encode_text=processor.encode_text,
        max_new_tokens=max_new_tokens,
        watch=recording,
        streamer=told,
        return_dict_in_generate=True,
        **options,
    )
    new = out.sequences[:, input_ids.shape[1] :]
    each = [count for count in patches for _ in range(copies)]
    records = recording.finish(new, each, getattr(out, "beam_indices", None))
    first = recording.first or recording.ended
    seconds = Seconds(0.0, first - recording.began, recording.ended - first)
    return GeneratedRows(new.tolist(), records, seconds, getattr(out, CACHE, None), recording.memory)


def _with_crops(
    model: PointAndCopyModel,
    processor: Processor,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    max_tokens: int,
    options: Mapping[str, Any],
    told: PartStreamer | None,
) -> GeneratedRows:
    """The same where answers stop for crops and are resumed: all their prefills count as decoding."""
    options = dict(options)
    copies = options.pop("num_return_sequences")
    if copies > 1 and (options.get("num_beams") or 1) > 1:
        raise ValueError(
            "several sequences of one beam search cannot be cropped and resumed: ask for one, or sample"
        )
    answers = [
        Answer(prompt.encoded, prompt.opened, prompt.encoded.patch_maps)
        for prompt in prompts
        for _ in range(copies)
    ]
    began = time.perf_counter()
    generate_with_crops(model, processor, answers, max_new_tokens, max_tokens, told, **options)
    seconds = Seconds(0.0, 0.0, time.perf_counter() - began)
    records = [_record_of(answer) for answer in answers]
    return GeneratedRows([answer.said for answer in answers], records, seconds)


def _record_of(answer: Answer) -> Record | None:
    """What was found likely of a cropped answer: the words alone, since nothing points."""
    if answer.logprobs is None:
        return None
    logprobs = torch.tensor(answer.logprobs)
    return Record(torch.empty(len(logprobs), 0), torch.zeros(len(logprobs)), logprobs, 0)
