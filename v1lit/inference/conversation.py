"""A conversation about images that are encoded once, and read once as long as no image joins them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from v1lit.backbones.cache_name import CACHE
from v1lit.backbones.processor import Processor
from v1lit.data.encode.prompt import encode_prompt
from v1lit.data.encode.turns import next_turn
from v1lit.data.example import Message
from v1lit.data.example.marks import words_of
from v1lit.grounding.patch_map import PatchMap
from v1lit.inference.generating import GeneratedRows, generate_once, generation_options
from v1lit.inference.prediction import Prediction
from v1lit.inference.prompt import (
    AboutRegions,
    Picture,
    Regions,
    as_list,
    longest_sequence,
    open_picture,
    with_regions,
)
from v1lit.inference.reading import read_answer
from v1lit.inference.streaming import Listener, PartStreamer
from v1lit.pointer.adapted import computing
from v1lit.pointer.borrow import borrowed
from v1lit.pointer.memory import PointerMemory
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.crop import Crop
from v1lit.steering import Steering


@dataclass
class _Images:
    """All images so far."""

    given: list[Picture]
    patch_maps: list[PatchMap]
    inputs: dict[str, Tensor]
    """The backbone's image tensors, for positions."""
    embeds: Tensor | None
    """`[1, image_tokens, width]`: what the decoder reads of them."""

    def joined(self, others: _Images) -> _Images:
        """Those images, and others behind them."""
        names = self.inputs | others.inputs
        embeds = [one for one in (self.embeds, others.embeds) if one is not None]
        return _Images(
            [*self.given, *others.given],
            [*self.patch_maps, *others.patch_maps],
            {
                name: torch.cat([own[name] for own in (self.inputs, others.inputs) if name in own])
                for name in names
            },
            torch.cat(embeds, dim=1) if embeds else None,
        )


@dataclass
class _ReadSoFar:
    """What the model has read: all ids so far but the last."""

    cache: Cache
    memory: PointerMemory


class Conversation:
    """Questions and answers about the same images; made by `Predictor.conversation`.

    The KV cache and the pointer memory of an answer are kept, so that the next question costs its own tokens.
    Images are encoded once; where some join later, or an answer was one of several beams or samples, the text
    is read anew with the embeddings that there are. Nothing of the cache is ever cut off.

    Args:
        model: to ask.
        processor: of the model.
        pictures: stand before the first question.
        system: what the model is told before; the family's own words when not given.

    Raises ValueError for a strategy whose answers hold images of their own.
    """

    def __init__(
        self,
        model: PointAndCopyModel,
        processor: Processor,
        pictures: Sequence[Picture] = (),
        system: str | None = None,
    ) -> None:
        if isinstance(model.strategy, Crop):
            raise ValueError(
                "the strategy crop shows parts of images within its answers, which a conversation does not "
                "keep; give Predictor.batch all the messages each time"
            )
        self.model, self.processor = model, processor.writing(model.strategy)
        self.ids: list[int] = []
        """All of the conversation so far."""
        self.answers: list[Prediction] = []
        """The answers so far."""
        self._waiting, self._system = list(pictures), system
        self._images = _Images([], [], {}, None)
        self._read: _ReadSoFar | None = None

    @property
    def pictures(self) -> list[Picture]:
        """All images so far, as they were given."""
        return [*self._images.given, *self._waiting]

    def ask(
        self,
        question: str | AboutRegions,
        images: Picture | Sequence[Picture] = (),
        max_new_tokens: int = 512,
        *,
        regions: Regions = (),
        steer: Steering | None = None,
        on_part: Listener | None = None,
        **generate: Any,
    ) -> Prediction:
        """Ask something, about all images so far and perhaps further ones.

        Args:
            question: somebody's words; see `Predictor.batch`.
            images: that join with this question.
            max_new_tokens: of the answer.
            regions: that the question names, in any image so far; see `AboutRegions`.
            steer: where and when the model may look in this answer.
            on_part: is told of the answer while it is written.
            **generate: as of `Predictor.batch`, but for several answers at once.

        Raises ValueError as `Predictor.batch`; the conversation is then as it was before.
        """
        began = time.perf_counter()
        options = generation_options(self.processor, generate)
        if options["num_return_sequences"] != 1:
            raise ValueError("a conversation continues from one answer: leave num_return_sequences out")
        pictures = [*self._waiting, *as_list(images)]
        about = AboutRegions.of(with_regions(question, regions))
        ids, joining, words = self._turn(about, pictures)
        if steer is not None:
            maps = [[*self._images.patch_maps, *joining.patch_maps]]
            rules = steer.rules(self.processor, maps, len(self.ids) + len(ids))
            options["logits_processor"] = [*options.get("logits_processor", []), *rules]
        told = None if on_part is None else PartStreamer(on_part, self.processor, self.model.strategy.points)
        with borrowed(self.model), computing(self.model), torch.no_grad():
            together = self._joined(ids, joining)
            known, self._read = self._read, None  # an error may leave half a step in the cache
            if pictures or (options.get("num_beams") or 1) > 1:
                known = None
            prepared = time.perf_counter()
            done = self._generate([*self.ids, *ids], together, known, max_new_tokens, options, told)
        prediction = self._prediction(done, len(self.ids) + len(ids), together, words, prepared - began)
        self._keep(ids, done, together, prediction)
        if told is not None:
            told.finish([prediction])
        return prediction

    def _turn(self, about: AboutRegions, pictures: Sequence[Picture]) -> tuple[list[int], _Images, str]:
        """Ids of what is asked, behind those so far, its images, not encoded yet, and its words."""
        opened = [open_picture(picture) for picture in pictures]
        message = about.messages(len(opened))[-1]
        config = about.encoding(longest_sequence(self.model))
        if self.ids:
            inputs, maps = self.processor.images(opened)
            before = self._images.patch_maps
            ids = next_turn(message, self._ended, maps, self.processor, config, before, about.named)
        else:
            turns = [message] if self._system is None else [Message("system", self._system), message]
            encoded = encode_prompt("question", turns, opened, self.processor, config, about.named)
            inputs, maps, ids = encoded.image_inputs, list(encoded.patch_maps), encoded.input_ids.tolist()
        if len(self.ids) + len(ids) > config.max_tokens:
            raise ValueError(
                f"the conversation has {len(self.ids) + len(ids)} tokens with this question, more than the "
                f"{config.max_tokens} that the model can read; begin another one"
            )
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        return ids, _Images(list(pictures), maps, inputs, None), words_of(message.content)

    @property
    def _ended(self) -> bool:
        return self.ids[-1] == self.processor.stop_token_id

    def _joined(self, ids: list[int], joining: _Images) -> _Images:
        """All images, those of a question encoded."""
        if joining.given or not self.ids:
            row = torch.tensor([ids], device=self.model.device)
            joining = replace(joining, embeds=self.model.embed_images(row, **joining.inputs))
        return self._images.joined(joining)

    def _generate(
        self,
        ids: list[int],
        images: _Images,
        known: _ReadSoFar | None,
        max_new_tokens: int,
        options: dict[str, Any],
        told: PartStreamer | None,
    ) -> GeneratedRows:
        row = torch.tensor([ids], device=self.model.device)
        mask = torch.ones_like(row)
        words = row.masked_fill(row >= self.processor.pointer_start, 0)
        inputs: dict[str, Any] = {
            "attention_mask": mask,
            "image_embeds": images.embeds,
            "position_ids": self.model.family.positions(self.model.backbone, words, mask, **images.inputs),
        }
        if known is not None:
            inputs |= {CACHE: known.cache, "pointer_memory": known.memory}
        patches = [sum(map(len, images.patch_maps))]
        return generate_once(self.model, self.processor, row, inputs, patches, max_new_tokens, options, told)

    def _prediction(
        self, done: GeneratedRows, prompt: int, images: _Images, words: str, prepare: float
    ) -> Prediction:
        maps = tuple(images.patch_maps)
        made = read_answer(done.ids[0], done.records[0], maps, prompt, self.processor, self.model.strategy)
        seconds = replace(done.seconds, prepare=prepare)
        return replace(made, seconds=seconds, question=words, pictures=tuple(images.given))

    def _keep(self, ids: list[int], done: GeneratedRows, images: _Images, prediction: Prediction) -> None:
        assert prediction.counts is not None
        self.ids += [*ids, *done.ids[0][: prediction.counts.generated]]
        self.answers.append(prediction)
        self._images, self._waiting = images, []
        # Of beams the cache has rows of others; a static one has no room for what follows.
        if not isinstance(done.cache, DynamicCache) or done.memory is None or len(done.memory.keys) != 1:
            return
        if done.cache.get_seq_length() == len(self.ids) - 1:
            self._read = _ReadSoFar(done.cache, done.memory)
