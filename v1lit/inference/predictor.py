"""`Predictor`: image and question in; trace, answer and regions out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from transformers import LogitsProcessor

from v1lit.backbones.processor import Processor
from v1lit.errors import OptionError
from v1lit.inference import best
from v1lit.inference.best import ChooseBy
from v1lit.inference.conversation import Conversation
from v1lit.inference.decoding import Decoding
from v1lit.inference.generating import GeneratedRows, generate_behind, generation_options
from v1lit.inference.prediction import Prediction
from v1lit.inference.prompt import (
    Picture,
    Prompt,
    Question,
    Regions,
    as_list,
    longest_sequence,
    make_prompt,
    with_regions,
)
from v1lit.inference.reading import read_answer
from v1lit.inference.streaming import Listener, Part, PartStreamer, iterate
from v1lit.pointer.adapted import computing
from v1lit.pointer.borrow import borrowed
from v1lit.pointer.model import PointAndCopyModel
from v1lit.steering import Steering, Vocabulary


class Predictor:
    """A trained model with its processor.

    ```python
    predictor = v1lit.load("runs/tiny_qwen/model")
    prediction = predictor("scene.png", "Where is the red circle?")
    ```

    A model in training can be asked too: it answers in evaluation mode and is left as it was. Raises
    ValueError where model and processor count pointers from different ids or have different image tokens.
    """

    def __init__(
        self, model: PointAndCopyModel, processor: Processor, decoding: Decoding | None = None
    ) -> None:
        if model.config.pointer_start != processor.pointer_start:
            raise ValueError(
                f"the model's pointers start at id {model.config.pointer_start}, but the processor's at "
                f"{processor.pointer_start}; make the processor with "
                "load_processor(config, pointer_start=model.config.pointer_start)"
            )
        if model.config.image_token_id != processor.image_token_id:
            raise ValueError(
                f"images are token {model.config.image_token_id} to the model, but "
                f"{processor.image_token_id} to the processor; take both from one folder"
            )
        self.model = model
        self.processor = processor.writing(model.strategy)
        self.decoding = decoding or Decoding()
        """How steps are computed; not those of a conversation, whose cache has to grow."""
        self.decoding.options(model)

    def __call__(
        self,
        images: Picture | Sequence[Picture],
        question: Question,
        max_new_tokens: int = 512,
        *,
        regions: Regions = (),
        **options: Any,
    ) -> Prediction:
        """Ask one question about one or several images, or none; options are those of `batch`.

        With `regions`, `<|region_1|>` in the question stands for the first of them, as in `AboutRegions`.
        """
        asked = [(as_list(images), with_regions(question, regions))]
        return self.batch(asked, max_new_tokens=max_new_tokens, **options)[0]

    def prompt(
        self,
        images: Picture | Sequence[Picture],
        question: Question,
        regions: Regions = (),
        name: str = "the question",
    ) -> Prompt:
        """What the model reads of a question, for `answer`; `name` is for messages. Raises as `batch`."""
        question, longest = with_regions(question, regions), longest_sequence(self.model)
        return make_prompt(name, as_list(images), question, self.processor, longest)

    def batch(
        self,
        questions: Sequence[tuple[Sequence[Picture], Question]],
        max_new_tokens: int = 512,
        *,
        best_of: int = 1,
        choose_by: ChooseBy = "likelihood",
        on_part: Listener | None = None,
        distributions: bool = False,
        steer: Steering | None = None,
        **generate: Any,
    ) -> list[Prediction]:
        """Ask several questions at once, each with its own images.

        A question given as text is somebody's words, and images stand before it; it may begin with one
        `<image>` per image, and elsewhere `<image>` is a word. Where images stand elsewhere, give a
        conversation: messages that end with the user's turn, in which every `<image>` marks a place. A
        question that points at something is `AboutRegions`.

        Args:
            questions: with the pictures of each.
            max_new_tokens: of an answer.
            best_of: sample that many answers to every question, and return the best one.
            choose_by: which one is; see `v1lit.inference.best.best_of`.
            on_part: is told of the answers while they are written, token by token; not of beams.
            distributions: keep where every token would have pointed, `4 x image tokens` bytes for each.
            steer: where and when the model may look.
            **generate: options of transformers' `generate`: `do_sample`, `temperature`, `num_beams`, ... A
                `repetition_penalty` is one of words: pointers, images and the end of an answer are spared.

        Raises ValueError for images that cannot be read, prompts longer than the model's, regions that cannot
        be written, and options that exclude each other.
        """
        prompts = [
            self.prompt(list(pictures), question, name=f"question {index}")
            for index, (pictures, question) in enumerate(questions)
        ]
        return self.answer(
            prompts,
            max_new_tokens,
            best_of=best_of,
            choose_by=choose_by,
            on_part=on_part,
            distributions=distributions,
            steer=steer,
            **generate,
        )

    def stream(
        self,
        images: Picture | Sequence[Picture],
        question: Question,
        max_new_tokens: int = 512,
        **options: Any,
    ) -> Iterator[Part]:
        """Ask one question, and get the answer in parts while it is written; the last has the `prediction`.

        Options are those of a call. Leaving the loop early ends the generation.
        """

        def work(listener: Listener) -> None:
            self(images, question, max_new_tokens, on_part=listener, **options)

        return iterate(work)

    def conversation(
        self, images: Picture | Sequence[Picture] = (), system: str | None = None
    ) -> Conversation:
        """A conversation about these images, which are encoded once, however often is asked.

        Args:
            images: stand before the first question.
            system: what the model is told before; the family's own words when not given.
        """
        return Conversation(self.model, self.processor, as_list(images), system)

    def answer(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        *,
        best_of: int = 1,
        choose_by: ChooseBy = "likelihood",
        on_part: Listener | None = None,
        distributions: bool = False,
        steer: Steering | None = None,
        **generate: Any,
    ) -> list[Prediction]:
        """The predictions of prompts that are made already; options and errors as of `batch`."""
        generate = {**self.decoding.options(self.model), **best.sampled(best_of, generate)}
        options = generation_options(self.processor, generate)
        if steer is not None:
            options["logits_processor"] = [*options.get("logits_processor", []), *self._rules(steer, prompts)]
        told = self._told(on_part, best_of, options)
        longest = longest_sequence(self.model)
        with borrowed(self.model), computing(self.model):
            done = generate_behind(
                self.model, self.processor, prompts, max_new_tokens, longest, options, told
            )
        copies = options["num_return_sequences"]
        asked = [prompt for prompt in prompts for _ in range(copies)]
        seconds = replace(done.seconds, prepare=sum(prompt.seconds for prompt in prompts))
        made = [
            replace(self._read(done, row, prompt, distributions), seconds=seconds)
            for row, prompt in enumerate(asked)
        ]
        if best_of > 1:
            made = [best.best_of(made[at : at + best_of], choose_by) for at in range(0, len(made), best_of)]
        if told is not None:
            told.finish(made)
        return made

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What every token writes; a grammar needs it."""
        return Vocabulary.of(self.processor)

    def _rules(self, steer: Steering, prompts: Sequence[Prompt]) -> list[LogitsProcessor]:
        maps = [prompt.encoded.patch_maps for prompt in prompts]
        longest = max(len(prompt.encoded.input_ids) for prompt in prompts)
        return steer.rules(self.processor, maps, longest, self.vocabulary if steer.uses_grammar else None)

    def _told(self, on_part: Listener | None, best_of: int, options: dict[str, Any]) -> PartStreamer | None:
        if on_part is None:
            return None
        if best_of > 1 or (options.get("num_beams") or 1) > 1:
            why = "beams and best_of choose an answer when all are written: there are no parts to tell"
            raise OptionError("on_part", on_part, why)
        return PartStreamer(on_part, self.processor, self.model.strategy.points)

    def _read(self, done: GeneratedRows, row: int, prompt: Prompt, distributions: bool) -> Prediction:
        record, tokens = done.records[row], len(prompt.encoded.input_ids)
        maps = prompt.encoded.patch_maps
        made = read_answer(done.ids[row], record, maps, tokens, self.processor, self.model.strategy)
        kept = None
        if distributions and record is not None and made.counts is not None and self.model.strategy.points:
            kept = record.distributions[: made.counts.generated].numpy()
        return replace(made, question=prompt.words, pictures=prompt.given, distributions=kept)
