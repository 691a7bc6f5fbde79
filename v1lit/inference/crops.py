"""Generation that stops where a region is closed, cuts it out of the picture, shows it, and resumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria

from v1lit.backbones.processor import Processor
from v1lit.data.encode.batch import collate
from v1lit.data.encode.encoding import Encoded, image_ids
from v1lit.grounding.markup import REGION_END
from v1lit.grounding.patch_map import PatchMap
from v1lit.inference.recording import Recording
from v1lit.inference.streaming import Told
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.crop import Crop


@dataclass
class Answer:
    """A prompt with what was generated behind it so far."""

    shown: Encoded
    """All of it, crops included."""
    pictures: Sequence[Image.Image]
    """What crops are cut out of."""
    patch_maps: tuple[PatchMap, ...]
    """One per picture."""
    said: list[int] = field(default_factory=list)
    """The ids that were generated, without crops."""
    logprobs: list[float] | None = field(default_factory=list)
    """Logarithms of the probabilities of `said`; None of beams."""
    crops: int = 0
    done: bool = False


class Closed(StoppingCriteria):
    """A row is done behind the tokens that close a region, and when it has its number of new tokens.

    Args:
        closing: ids of the end of a region, as they are written in training.
        prompt: tokens of the prompts, padding included.
        room: new tokens of each row at most.
        may_crop: whether each row stops at the end of a region.
    """

    def __init__(
        self, closing: Sequence[int], prompt: int, room: Sequence[int], may_crop: Sequence[bool]
    ) -> None:
        self.closing, self.prompt, self.room, self.may_crop = closing, prompt, room, may_crop

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """`[rows]`: whether each row of `input_ids` `[rows, tokens]` is done; beams count as rows."""
        new, beams = input_ids[:, self.prompt :], len(input_ids) // len(self.room)
        room, may_crop = (
            torch.tensor(per_row, device=new.device).repeat_interleave(beams)
            for per_row in (self.room, self.may_crop)
        )
        closed = torch.zeros_like(may_crop)
        if new.shape[1] >= len(self.closing):
            end = torch.tensor(self.closing, device=new.device)
            closed = (new[:, -len(self.closing) :] == end).all(1)
        return (closed & may_crop) | (new.shape[1] >= room)


def generate_with_crops(
    model: PointAndCopyModel,
    processor: Processor,
    answers: Sequence[Answer],
    max_new_tokens: int,
    max_tokens: int,
    told: Told | None = None,
    **options: Any,
) -> None:
    """Generate behind every prompt; a crop follows where a region with a sound box is closed.

    Prompts are prefilled anew behind every crop, so positions are those of training. Crops do not count
    towards `max_new_tokens`, and one that does not fit into `max_tokens` is not shown.

    Args:
        model: whose strategy is `crop`.
        processor: of the model.
        answers: to fill.
        max_new_tokens: generated tokens of an answer at most.
        max_tokens: of an answer with its prompt and crops at most.
        told: is told of every token.
        **options: of `generate`.
    """
    closing = processor.encode_text(REGION_END, special=False)
    own_criteria = options.pop("stopping_criteria", None) or []
    strategy = model.strategy
    assert isinstance(strategy, Crop)
    while indices := [index for index, answer in enumerate(answers) if not answer.done]:
        rows = [answers[index] for index in indices]
        if told is not None:
            told.begin(indices, [row.said for row in rows])
        room = [max_new_tokens - len(row.said) for row in rows]
        may_crop = [row.crops < strategy.max_crops for row in rows]
        batch = collate([row.shown for row in rows], processor.pad_token_id, side="left").to(model.device)
        prompt = batch.input_ids.shape[1]
        recording = Recording(model.config.pointer_start)
        out = model.generate(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            **batch.image_inputs,
            encode_text=processor.encode_text,
            max_new_tokens=max(room),
            stopping_criteria=[*own_criteria, Closed(closing, prompt, room, may_crop)],
            watch=recording,
            streamer=told,
            return_dict_in_generate=True,
            **options,
        )
        ids = out.sequences[:, prompt:]
        records = recording.finish(ids, [0] * len(rows), getattr(out, "beam_indices", None))
        for number, (row, new) in enumerate(zip(rows, ids.tolist(), strict=True)):
            before = len(row.said)
            _add(row, new[: room[number]], closing if may_crop[number] else [], processor)
            likely = records[number].logprobs
            if row.logprobs is None or likely is None:
                row.logprobs = None
            else:
                row.logprobs += likely[: len(row.said) - before].tolist()
            row.done = row.done or len(row.said) >= max_new_tokens
            if not row.done:
                _show(row, strategy, processor, max_tokens)


def _add(row: Answer, new: list[int], closing: list[int], processor: Processor) -> None:
    """Append what was generated up to the stop, or up to the first end of a region; else it is done."""
    stop = new.index(processor.stop_token_id) if processor.stop_token_id in new else len(new)
    length = len(closing)
    ends = (end for end in range(length, stop + 1) if length and new[end - length : end] == closing)
    end = next(ends, None)
    row.done = end is None
    new = new[: stop if end is None else end]
    row.said += new
    row.shown = _longer(row.shown, new)


def _show(row: Answer, strategy: Crop, processor: Processor, max_tokens: int) -> None:
    """Append the crop that the answer asks for, if it does and there is room."""
    cut = strategy.cut(processor.decode(row.said), row.patch_maps, processor.patch_map)
    if cut is None:
        return
    inputs, maps = processor.images([cut.of(row.pictures[cut.image])])
    ids = image_ids(processor, len(maps[0]))
    if len(row.shown.input_ids) + len(ids) >= max_tokens:
        return
    row.crops += 1
    own = row.shown.image_inputs
    row.shown = replace(
        _longer(row.shown, ids),
        image_inputs={name: torch.cat([own[name], tensor]) for name, tensor in inputs.items()},
        patch_maps=(*row.shown.patch_maps, *maps),
    )


def _longer(encoded: Encoded, ids: list[int]) -> Encoded:
    ids_after = torch.cat([encoded.input_ids, torch.tensor(ids, dtype=torch.long)])
    return replace(encoded, input_ids=ids_after, labels=torch.full_like(ids_after, -100))
