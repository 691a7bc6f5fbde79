"""Text to ids and images to tensors for one backbone, saved and loaded as a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from copy import copy
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from v1lit.backbones.adapters.folder import base_config
from v1lit.backbones.config import VIEWS, BackboneConfig
from v1lit.backbones.contract import Backbone
from v1lit.backbones.hub import hub_errors
from v1lit.backbones.image_options import ImageProcessor, check_positive
from v1lit.backbones.image_processors import PROCESSOR_FILE as FILE
from v1lit.backbones.image_processors import checkpoint_image_processor, saved_image_processor
from v1lit.backbones.load import check_backbone_config, checkpoint_config
from v1lit.backbones.registry import get_backbone
from v1lit.backbones.tiny import tiny_tokenizer, token_id
from v1lit.backbones.vocabulary import check_config_ids, check_marks, check_vocabulary, load_tokenizer
from v1lit.backbones.weight_files import read_json
from v1lit.errors import explain_unknown, named
from v1lit.files import write_atomically
from v1lit.grounding.markup import pointer_text
from v1lit.grounding.patch_map import PatchMap, Views
from v1lit.paths import expand_path
from v1lit.revisit.registry import make_strategy
from v1lit.revisit.strategy import Strategy

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

SCHEMA_VERSION = 1
ANCHOR = "\n"
_TOKENIZING = Lock()
"""Whether marks are plain text is state of a tokenizer: two threads would change it under each other."""


class Processor:
    """What stands between an example and a backbone.

    Ids below `pointer_start` are the tokenizer's; id `pointer_start + j` points at image token `j` of
    its example and never reaches the tokenizer.

    Args:
        backbone: The backbone or its name.
        tokenizer: A transformers tokenizer.
        image_processor: As `Backbone.image_processor` or `checkpoint_image_processor` makes it.
        pointer_start: First id that is not text: the number of rows of the model's embedding table.
        views: As in `BackboneConfig`.
        revisit: How regions are written; `point_and_copy` when not given.
    """

    def __init__(
        self,
        backbone: Backbone | str,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: ImageProcessor,
        pointer_start: int,
        views: Views = "all",
        revisit: Strategy | None = None,
    ) -> None:
        self.backbone = get_backbone(backbone) if isinstance(backbone, str) else backbone
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.pointer_start = pointer_start
        if views not in VIEWS:
            raise ValueError(explain_unknown("views", views, VIEWS))
        self.views = views
        self.revisit = revisit or make_strategy()
        vocabulary = tokenizer.get_vocab()
        check_vocabulary(vocabulary, pointer_start)
        self.vocab_size: int = max(vocabulary.values()) + 1
        """Ids of text; at most `pointer_start`. Some may be no token."""
        self._gaps = frozenset(range(self.vocab_size)).difference(vocabulary.values())
        self.image_token_id = token_id(tokenizer, self.backbone.chat.image_token)
        self.stop_token_id = token_id(tokenizer, self.backbone.chat.stop)
        pad = tokenizer.pad_token_id
        self.pad_token_id: int = self.stop_token_id if pad is None else pad
        if self.pad_token_id == self.image_token_id:
            raise ValueError(
                f"the tokenizer pads with {self.backbone.chat.image_token!r}, the token of images; "
                "set another pad_token in tokenizer_config.json"
            )
        self._anchor = _anchor(tokenizer)
        check_marks(tokenizer, self.backbone.chat, self.encode_text)

    def writing(self, revisit: Strategy) -> Processor:
        """One that writes regions in this way, itself where it does: a saved one has that of `__init__`."""
        if revisit == self.revisit:
            return self
        other = copy(self)
        other.revisit = revisit
        return other

    @property
    def image_options(self) -> dict[str, Any]:
        """The options in force that decide which pixels a token sees, and `max_side`."""
        return {**self.image_processor.options, "max_side": self.image_processor.max_side}

    def encode_text(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text, nothing added. With `special=False` marks like `<|im_end|>` are plain text."""
        if not text:
            return []
        if self._anchor:
            return _encode(self.tokenizer, ANCHOR + text, special)[len(self._anchor) :]
        return _encode(self.tokenizer, text, special)

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of ids; pointers as `<|copy_N|>`, ids that the tokenizer lacks as `<|unused_N|>`."""
        pieces: list[str] = []
        for is_text, run in groupby(map(int, ids), self._is_text):
            tokens = list(run)
            pieces += [self._decode_text(tokens, skip_special)] if is_text else map(self._foreign, tokens)
        return "".join(pieces)

    def images(
        self, images: Sequence[Image.Image], among: int | None = None
    ) -> tuple[dict[str, Tensor], list[PatchMap]]:
        """Tensors for the model and one patch map per image; both empty for no images.

        `among` is the number of images of the example, by default of those given; crops of them do not count.
        """
        return self.backbone.preprocess(images, self.image_processor, views=self.views, among=among)

    def patch_map(self, image_size: tuple[int, int], among: int = 1) -> PatchMap:
        """The patch map of an image of this `(width, height)`, as `images` returns it, without the image.

        `among` is the number of images of the example.
        """
        return self.backbone.patch_map(image_size, views=self.views, among=among, **self.image_options)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer, image processor and `v1lit_processor.json` into a folder."""
        path = Path(expand_path(folder))
        path.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(path)
        self.image_processor.processor.save_pretrained(path)
        content = {
            "schema_version": SCHEMA_VERSION,
            "backbone": self.backbone.name,
            "pointer_start": self.pointer_start,
            "views": self.views,
            "image": self.image_options,
        }
        write_atomically(path / FILE, json.dumps(content, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Processor:
        """Read a folder written by `save_pretrained`. Raises ValueError if it is none."""
        path = Path(expand_path(folder))
        if not (path / FILE).is_file():
            raise ValueError(f"{path} has no {FILE}: it was not written by Processor.save_pretrained")
        content = read_json(path / FILE)
        if content.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"{path / FILE}: schema_version must be {SCHEMA_VERSION}")
        try:
            backbone = get_backbone(content["backbone"])
            options = {key: value for key, value in dict(content["image"]).items() if value is not None}
            return cls(
                backbone,
                load_tokenizer(str(path), backbone.hub_id),
                saved_image_processor(backbone, str(path), options),
                pointer_start=check_positive("pointer_start", content["pointer_start"]),
                views=content["views"],
            )
        except KeyError as error:
            raise ValueError(f"{path / FILE} lacks the key {error}") from None
        except TypeError as error:
            raise ValueError(f"{path / FILE} cannot be read: {error}") from None

    def _is_text(self, token: int) -> bool:
        return 0 <= token < self.vocab_size and token not in self._gaps

    def _decode_text(self, ids: list[int], skip_special: bool) -> str:
        decoded = self.tokenizer.decode(
            self._anchor + ids, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )
        text = str(decoded)
        return text.removeprefix(ANCHOR) if self._anchor else text

    def _foreign(self, token: int) -> str:
        if token < 0:
            raise ValueError(f"{token} is not a token id")
        pointer = token - self.pointer_start
        return pointer_text(pointer) if pointer >= 0 else f"<|unused_{token}|>"


def load_processor(
    config: BackboneConfig, pointer_start: int | None = None, revisit: Strategy | None = None
) -> Processor:
    """The processor of a backbone, without its weights.

    `pointer_start` is that of the model it shall serve, where that is not the number of rows of the
    backbone's embedding table; `revisit` writes the regions of traces.
    Raises ValueError for a user's mistake, WeightsUnavailable if a checkpoint is out of reach.
    """
    config = base_config(config)
    backbone = check_backbone_config(config)
    if config.weights == "tiny":
        tokenizer = tiny_tokenizer(backbone.chat.stop, backbone.chat.single)
        model_config = backbone.tiny_config(tokenizer, **config.tiny)
        image_processor = backbone.image_processor("tiny", config.tiny, **config.image)
    else:
        model_config = checkpoint_config(backbone, config.weights)
        with hub_errors(config.weights):
            tokenizer = load_tokenizer(config.weights, backbone.hub_id)
        with named(config.weights):
            check_config_ids(tokenizer, backbone.chat, model_config)
        image_processor = checkpoint_image_processor(backbone, config.weights, **config.image)
    with named("model.backbone.image" if config.image else config.weights):
        backbone.check_fit(image_processor.options, model_config)
    if revisit is None or revisit.points:
        backbone.refuse_pointing(model_config)
    if pointer_start is None:
        pointer_start = model_config.get_text_config().vocab_size
    with named(config.weights):
        return Processor(backbone, tokenizer, image_processor, pointer_start, config.views, revisit)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = True) -> list[int]:
    with _TOKENIZING:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]
    return list(ids)


def _anchor(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of `ANCHOR` if the tokenizer puts a space before every text; empty if it does not.

    Sentences are encoded piece by piece around images and pointers. Tokenizers like Llama's would add a space
    to each piece and drop one when decoding it; with something before the piece they do neither.
    """
    adds_space = tokenizer.decode(_encode(tokenizer, "a") * 2) != "aa"
    return _encode(tokenizer, ANCHOR) if adds_space else []
