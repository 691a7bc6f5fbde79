"""The text of every token of a vocabulary, found by how it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from v1lit.backbones.processor import Processor


class Vocabulary:
    """What every id below `pointer_start` writes.

    Args:
        texts: `[V]`: text of each id; "" for what writes nothing, such as the marks of a chat.
        stop: id that ends an answer.
    """

    def __init__(self, texts: Sequence[str], stop: int) -> None:
        self.texts, self.stop = texts, stop
        self.by_first: dict[str, list[int]] = {}
        for token, text in enumerate(texts):
            if text and token != stop:
                self.by_first.setdefault(text[0], []).append(token)

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def of(cls, processor: Processor) -> Vocabulary:
        """The vocabulary of a processor. It decodes every token by itself, which takes a second or two."""
        marks = set(processor.tokenizer.all_special_ids)
        vocabulary = processor.tokenizer.get_vocab().values()
        texts = [""] * processor.pointer_start
        for token in vocabulary:
            if token not in marks and token < processor.pointer_start:
                texts[token] = processor.decode([token])
        return cls(texts, processor.stop_token_id)
