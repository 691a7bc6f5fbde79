"""`Predictor`: image and question in; trace, answer and regions out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from v1lit.backbones.adapters.folder import adapter_folder
from v1lit.backbones.folder import check_exported
from v1lit.backbones.processor import Processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.batch import collate
from v1lit.data.encode.encoding import Encoded, encode_prompt
from v1lit.data.example import Message
from v1lit.data.example.marks import IMAGE_MARKER, escape
from v1lit.data.images import EncodedImage, decode_image
from v1lit.grounding.markup import find_answers
from v1lit.grounding.patch_map import PatchMap, token_regions
from v1lit.grounding.picture import as_seen
from v1lit.grounding.region import Region
from v1lit.grounding.trace import Trace, parse_trace
from v1lit.inference.crops import Answer, generate_with_crops
from v1lit.paths import expand_path
from v1lit.pointer.adapted import computing
from v1lit.pointer.borrow import borrowed
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.crop import Crop

_MARKS = re.compile(rf"\A(?:{IMAGE_MARKER}\s*)+")
Picture = Image.Image | EncodedImage | bytes | str | Path


@dataclass(frozen=True)
class Prediction:
    """What a model said about its images."""

    text: str
    """The trace as generated; pointers are written `<|copy_7|>`."""
    answer: str | None
    """What stands between the last `<answer>` and its `</answer>`."""
    trace: Trace
    """The text with its `detect(...)` calls taken apart."""
    pointers: tuple[tuple[int, ...], ...]
    """Image tokens that were pointed at: one tuple for every run of consecutive pointers."""
    patch_maps: tuple[PatchMap, ...] = field(repr=False)
    """One per image."""

    @property
    def regions(self) -> list[Region]:
        """What the pointers cover, in pixels of the original images: one region per run and image."""
        return [region for run in self.pointers for region in token_regions(self.patch_maps, run)]


class Predictor:
    """A trained model with its processor.

    ```python
    predictor = v1lit.load("runs/tiny_qwen/model")
    prediction = predictor("scene.png", "Where is the red circle?")
    ```

    A model in training can be asked too: it answers in evaluation mode and is left as it was. Raises
    ValueError where model and processor count pointers from different ids or have different image tokens.
    """

    def __init__(self, model: PointAndCopyModel, processor: Processor) -> None:
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
        self.processor = processor

    def __call__(
        self, images: Picture | Sequence[Picture], question: str, max_new_tokens: int = 512, **generate: Any
    ) -> Prediction:
        """Ask one question about one or several images; see `batch`. Further options go to `generate`."""
        if not isinstance(images, list | tuple):
            images = [images]  # type: ignore[list-item]
        return self.batch([(list(images), question)], max_new_tokens=max_new_tokens, **generate)[0]

    def batch(
        self,
        questions: Sequence[tuple[Sequence[Picture], str | Sequence[Message]]],
        max_new_tokens: int = 512,
        **generate: Any,
    ) -> list[Prediction]:
        """Ask several questions at once, each with its own images.

        A question given as text is somebody's words, and images stand before it; it may begin with one
        `<image>` per image, and elsewhere `<image>` is a word. Where images stand elsewhere, give a
        conversation: messages that end with the user's turn, in which every `<image>` marks a place.
        Raises ValueError for images that cannot be read and prompts longer than the model's.
        """
        text_config = self.model.config.get_text_config()
        config = EncodingConfig(max_tokens=int(getattr(text_config, "max_position_embeddings", 32768)))
        encoded, pictures = [], []
        for index, (images, question) in enumerate(questions):
            opened = [open_picture(image) for image in images]
            pictures.append(opened)
            messages = _as_messages(question, len(opened))
            encoded.append(encode_prompt(f"question {index}", messages, opened, self.processor, config))
        options = {
            "do_sample": False,
            "num_return_sequences": 1,
            "eos_token_id": self.processor.stop_token_id,
            "pad_token_id": self.processor.pad_token_id,
            **generate,
        }
        maps = [example.patch_maps for example in encoded for _ in range(options["num_return_sequences"])]
        with borrowed(self.model), computing(self.model):
            if isinstance(self.model.strategy, Crop):
                new = self._with_crops(encoded, pictures, max_new_tokens, config.max_tokens, options)
            else:
                batch = collate(encoded, self.processor.pad_token_id, side="left").to(self.model.device)
                out = self.model.generate(
                    batch.input_ids,
                    attention_mask=batch.attention_mask,
                    **batch.image_inputs,
                    encode_text=self.processor.encode_text,
                    max_new_tokens=max_new_tokens,
                    **options,
                )
                new = out[:, batch.input_ids.shape[1] :].tolist()
        return [self._read(ids, patch_maps) for ids, patch_maps in zip(new, maps, strict=True)]

    def _with_crops(
        self,
        prompts: Sequence[Encoded],
        pictures: Sequence[Sequence[Image.Image]],
        max_new_tokens: int,
        max_tokens: int,
        options: dict[str, Any],
    ) -> list[list[int]]:
        """The ids that are generated behind every prompt, several times where several are asked for."""
        copies = options.pop("num_return_sequences")
        if copies > 1 and options.get("num_beams", 1) > 1:
            raise ValueError(
                "several sequences of one beam search cannot be cropped and resumed: ask for one, or sample"
            )
        answers = [
            Answer(prompt, own, prompt.patch_maps)
            for prompt, own in zip(prompts, pictures, strict=True)
            for _ in range(copies)
        ]
        generate_with_crops(self.model, self.processor, answers, max_new_tokens, max_tokens, **options)
        return [answer.said for answer in answers]

    def _read(self, ids: list[int], patch_maps: tuple[PatchMap, ...]) -> Prediction:
        stop = self.processor.stop_token_id
        if stop in ids:
            ids = ids[: ids.index(stop)]
        start, points = self.processor.pointer_start, self.model.strategy.points
        # Without pointing they were put in, not generated; the one behind the last patch's ends a run.
        behind = start + sum(map(len, patch_maps)) if points else start
        ids = [token for token in ids if token < behind]
        text = self.processor.decode(ids)
        answers = find_answers(text, unfinished=True)
        return Prediction(
            text=text,
            answer=answers[-1].strip() if answers else None,
            trace=parse_trace(text).trace,
            pointers=pointer_runs(ids, start),
            patch_maps=patch_maps,
        )


def load(folder: str | Path, dtype: str = "auto", device: str = "cpu", **kwargs: Any) -> Predictor:
    """Open an exported model folder; `dtype` is as in transformers, further options go to `from_pretrained`.

    That of an adapter is opened with its backbone, from where it lay or, with `base`, lies now. Raises
    ValueError for any other folder, saying what it is, and for files that are missing or damaged.
    """
    folder = Path(expand_path(folder))
    if adapter_folder(folder) is None:
        check_exported(folder)
    model = PointAndCopyModel.from_pretrained(folder, dtype=dtype, **kwargs)
    model.to(torch.device(device))
    return Predictor(model, Processor.from_pretrained(folder))


def _as_messages(question: str | Sequence[Message], images: int) -> Sequence[Message]:
    """A question given as text is somebody's words, but for the marks that it begins with."""
    if not isinstance(question, str):
        return question
    words = _MARKS.sub("", question)
    marks = question[: len(question) - len(words)] or f"{IMAGE_MARKER}\n" * images
    return [Message("user", marks + escape(words))]


def pointer_runs(ids: Sequence[int], pointer_start: int) -> tuple[tuple[int, ...], ...]:
    """Runs of consecutive pointers in a sequence of ids, as indices of image tokens."""
    runs = groupby(ids, key=lambda token: token >= pointer_start)
    return tuple(tuple(token - pointer_start for token in run) for is_pointer, run in runs if is_pointer)


def open_picture(picture: Picture) -> Image.Image:
    """The pixels that a person sees, RGB, whichever way a picture is given: see `as_seen`.

    Raises ValueError for what is no picture, for a missing file and for an image that cannot be used.
    """
    if isinstance(picture, Image.Image):
        return as_seen(picture)
    if isinstance(picture, bytes | EncodedImage):
        return decode_image(picture)
    if not isinstance(picture, str | Path):
        raise ValueError(
            f"a picture is a Pillow image, the bytes of an image file or its path, not {_kind(picture)}"
        )
    path = Path(expand_path(picture))
    if not path.is_file():
        raise ValueError(f"there is no image file {path}")
    return decode_image(path.read_bytes())


def _kind(thing: object) -> str:
    kind = type(thing).__name__
    turned = kind in ("ndarray", "Tensor")
    return f"a {kind}; Image.fromarray makes an image of uint8 [height, width, 3]" if turned else f"a {kind}"
