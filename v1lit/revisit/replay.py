"""Write boxes as text, and put the whole image in again behind every call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from v1lit.errors import check_least
from v1lit.grounding.markup import CALL_END, REGION, REGION_END
from v1lit.grounding.region import Region
from v1lit.revisit.coordinates import Coordinates
from v1lit.revisit.strategy import EncodeText, RegionWriter


@dataclass(frozen=True)
class Replay(Coordinates):
    """`detect(query="...", objects=["<obj1><region>[x1, y1, x2, y2]</region>"])`, then the image's tokens.

    They are put in once behind a call whose last object has a region, as pointers that are inputs and never
    labels: nothing is pointed at. Where an example has several images, the tokens of all are put in, since a
    box does not say which image it is of. Source of the idea: TVC, arXiv 2503.13360.
    """

    max_tokens: int | None = None
    """Image tokens put in at a call at most: where there are more, every second, third and so on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 1, "max_tokens")

    def write_region(self, sequence: RegionWriter, name: str, region: Region, learn: bool) -> None:
        size = sequence.patch_maps[region.image].image_size
        sequence.add_text(REGION + self.text(region.box, size), learn)
        sequence.add_text(REGION_END, learn)  # by itself, so that its tokens are always the same

    def write_behind(self, sequence: RegionWriter, words: str, learn: bool) -> str:
        if not words.startswith(CALL_END):
            return words
        sequence.add_text(CALL_END, learn)
        count = sum(map(len, sequence.patch_maps))
        sequence.put_in(range(0, count, self.step(count)))
        return words.removeprefix(CALL_END)

    def steering(
        self, pointer_start: int, image_token_id: int, encode_text: EncodeText | None
    ) -> list[LogitsProcessor]:
        if encode_text is None:
            raise ValueError(
                "the strategy replay looks for the end of a call in what is generated: give generate "
                "encode_text=processor.encode_text, or ask a Predictor"
            )
        closing = [*encode_text(REGION_END, special=False), *encode_text(CALL_END, special=False)]
        return [ImageAgain(self, closing, image_token_id, pointer_start)]

    def step(self, count: int) -> int:
        """Every how many of `count` image tokens one is put in."""
        return max(1, -(-count // (self.max_tokens or max(1, count))))


class ImageAgain(LogitsProcessor):
    """Behind the tokens that close a call, the image's tokens are all that can be generated.

    What is forced depends on the ids of a row alone, so samples and beams each have their own.

    Args:
        strategy: says which of the image's tokens.
        closing: ids of the end of a region and of the call, as they are written in training.
        image_token_id: of images.
        pointer_start: id of the pointer to image token 0.
    """

    def __init__(
        self, strategy: Replay, closing: Sequence[int], image_token_id: int, pointer_start: int
    ) -> None:
        self.strategy, self.closing = strategy, closing
        self.image_token_id, self.pointer_start = image_token_id, pointer_start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`[rows, vocabulary]`: the scores, where a token is forced 0 for it and -inf for all others.

        Args:
            input_ids: `[rows, tokens]`, with the prompt.
            scores: `[rows, vocabulary]`, pointers included.
        """
        count = (input_ids == self.image_token_id).sum(1)
        step = torch.ones_like(count)
        if self.strategy.max_tokens is not None:
            step = (-(-count // self.strategy.max_tokens)).clamp(min=1)
        run = (input_ids >= self.pointer_start).flip(1).long().cumprod(1).sum(1)
        closing = torch.tensor(self.closing, device=input_ids.device)
        places = (input_ids.shape[1] - run - len(closing))[:, None] + torch.arange(
            len(closing), device=input_ids.device
        )
        before = input_ids.gather(1, places.clamp(min=0))
        forced = (before == closing).all(1) & (places[:, 0] >= 0) & (run * step < count)
        token = torch.where(forced, self.pointer_start + run * step, 0)
        only = torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)
        return torch.where(forced[:, None], only, scores)
