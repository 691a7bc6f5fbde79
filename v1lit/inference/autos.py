"""What transformers' `Auto` classes and its pipeline `image-text-to-text` open our folders with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from v1lit.backbones.processor import Processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.batch import collate
from v1lit.data.encode.encoding import Encoded
from v1lit.data.encode.prompt import encode_prompt
from v1lit.data.example import Message
from v1lit.data.example.marks import IMAGE_MARKER, escape
from v1lit.inference.loading import local_export
from v1lit.inference.prompt import AboutRegions, Picture, as_list, open_picture
from v1lit.pointer.model import PointAndCopyModel as PointAndCopyModel  # which registers itself
from v1lit.pointer.model_config import PointAndCopyConfig

TENSORS: Mapping[str, tuple[Any, ...]] = {"return_tensors": ("pt",), "padding": (True, "longest")}
"""Options of transformers' processors that change nothing, and their values."""
LONGEST = 10**9
"""Tokens of a prompt; the model's own limit is not known here."""


class PointAndCopyProcessor(ProcessorMixin):
    """A `Processor` in the form of transformers: chats, or questions with images, become a model's inputs.

    A chat's image stands on a line of its own, as in `Predictor`, whatever the family's own template says:
    `[{"type": "image", "image": picture}, {"type": "text", "text": question}]` is `predictor(picture,
    question)`. Marks in words are plain text.
    """

    def __init__(self, processor: Processor) -> None:
        # Not the base's: it takes apart what stays together here.
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.image_processor = processor.image_processor.processor
        self.chat_template = None

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", *self.processor.backbone.image_inputs]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        **options: Any,
    ) -> BatchFeature:
        """The inputs of one question about its images, or of several, each with one image or a list of them.

        Raises ValueError for images that cannot be read and for options that would be left out.
        """
        _refuse(options, TENSORS)
        questions = [text or ""] if text is None or isinstance(text, str) else list(text)
        given: list[Any] = [] if images is None else as_list(images)
        each = [given] if len(questions) == 1 and not _nested(given) else [as_list(one) for one in given]
        if images is None:
            each = [[] for _ in questions]
        if len(each) != len(questions):
            raise ValueError(f"there are {len(questions)} questions, and images for {len(each)} of them")
        return self._batch(
            [
                self._encode(AboutRegions(question).messages(len(pictures)), pictures)
                for question, pictures in zip(questions, each, strict=True)
            ]
        )

    def apply_chat_template(  # type: ignore[override]  # of the many options those that mean something here
        self, conversation: Sequence[Any], **options: Any
    ) -> BatchFeature:
        """The inputs of a chat that ends with the user's turn, or of several; as `__call__`.

        Messages are of transformers' form: `{"role": ..., "content": ...}`, the content a text or a list of
        `{"type": "text", "text": ...}` and `{"type": "image", "image": ...}`; an image is a picture, or a
        local path as `path` or `url`. Nothing is fetched.
        """
        allowed: dict[str, tuple[Any, ...]] = {
            **TENSORS,
            **dict.fromkeys(("tokenize", "return_dict", "add_generation_prompt"), (True,)),
            "continue_final_message": (False,),
            "processor_kwargs": ({},),
        }
        _refuse(options, allowed)
        chats = [conversation] if conversation and isinstance(conversation[0], Mapping) else conversation
        return self._batch([self._encode(*_read_chat(chat)) for chat in chats])

    def encode_text(self, text: str, special: bool = True) -> list[int]:
        """For `model.generate(..., encode_text=...)`, which some strategies need."""
        return self.processor.encode_text(text, special)

    def decode(self, ids: Any, skip_special_tokens: bool = False, **options: Any) -> Any:
        """The text of ids `[tokens]`, or texts of `[rows, tokens]`; pointers as `<|copy_N|>`."""
        rows = ids.tolist() if isinstance(ids, Tensor) else ids
        if len(rows) and isinstance(rows[0], Sequence | Tensor):
            return self.batch_decode(rows, skip_special_tokens, **options)
        return self.processor.decode(rows, skip_special_tokens)

    def batch_decode(self, ids: Any, skip_special_tokens: bool = False, **options: Any) -> list[str]:
        """The texts of ids `[rows, tokens]`."""
        return [self.decode(row, skip_special_tokens) for row in ids]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **options: Any
    ) -> list[str]:
        """The texts of what was generated, `[rows, tokens]`."""
        return self.batch_decode(generated_outputs, skip_special_tokens)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **options: Any) -> None:
        """Write the processor's files into a folder."""
        if push_to_hub:
            raise ValueError("push_to_hub: push the whole folder, with v1lit push")
        self.processor.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, folder: Any, **options: Any) -> PointAndCopyProcessor:  # type: ignore[override]
        """Open the processor of a folder that v1lit wrote, or of the hub."""
        return cls(Processor.from_pretrained(local_export(folder)))

    def _encode(self, messages: Sequence[Message], pictures: Sequence[Picture]) -> Encoded:
        opened = [open_picture(picture) for picture in pictures]
        return encode_prompt("the chat", messages, opened, self.processor, EncodingConfig(max_tokens=LONGEST))

    def _batch(self, prompts: Sequence[Encoded]) -> BatchFeature:
        batch = collate(prompts, self.processor.pad_token_id, side="left")
        ids = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        return BatchFeature({**ids, **batch.image_inputs})


def _read_chat(chat: Sequence[Mapping[str, Any]]) -> tuple[list[Message], list[Picture]]:
    messages, pictures = [], list[Picture]()
    for message in chat:
        content, words = message["content"], ""
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                words += escape(part["text"])
            elif part["type"] == "image":
                pictures.append(_picture(part))
                words += f"{IMAGE_MARKER}\n"
            else:
                raise ValueError(f"a chat has a part of type {part['type']!r}; v1lit reads text and image")
        messages.append(Message(message["role"], words))
    if not messages or messages[-1].role != "user":
        raise ValueError("a chat ends with the user's turn; v1lit does not continue an answer")
    return messages, pictures


def _picture(part: Mapping[str, Any]) -> Picture:
    found = next((part[key] for key in ("image", "path", "url") if part.get(key) is not None), None)
    if found is None:
        raise ValueError("a part of type image has no image; give a picture or a path as `image`")
    if isinstance(found, str) and found.startswith(("http://", "https://", "data:")):
        raise ValueError(f"{found[:60]}: v1lit fetches no pictures; give it a picture or a local path")
    return found  # what is no picture is refused where it is opened


def _nested(images: Sequence[Any]) -> bool:
    return any(isinstance(one, list | tuple) for one in images)


def _refuse(options: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise ValueError for an option with which the inputs would have to be others."""
    for name, value in options.items():
        if value is not None and value not in allowed.get(name, ()):
            known = ", ".join(f"{key}={values[0]!r}" for key, values in allowed.items())
            raise ValueError(f"{name}={value!r}: v1lit's processor takes {known}, and nothing else")


AutoProcessor.register(PointAndCopyConfig, PointAndCopyProcessor, exist_ok=True)
