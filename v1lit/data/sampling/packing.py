"""`Packer`: which examples share a row, so that it is full of tokens and has its share of image tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from v1lit.data.config import PackingConfig
from v1lit.data.lengths.length import Length

T = TypeVar("T")
ROWS_AHEAD = 12
"""Enough examples wait when they would fill that many rows: more hardly fill or balance rows better."""
NEAR = 50
"""A row's image tokens are near enough to its share when they differ by a `NEAR`-th of it."""
UNREACHED = np.iinfo(np.int64).max // 2
FAR = np.iinfo(np.int32).max // 2
"""More image tokens than any row has: of sums that are not reached. Narrow numbers are added faster."""


class Packer(Generic[T]):
    """Chooses, of the items that wait, those that share the next row; knows nothing but their lengths.

    Up to `config.look_ahead` items wait, fewer where they would fill `ROWS_AHEAD` rows. The one that has
    waited longest opens the next row, and of the sets of the others that fill the rest best one joins it: a
    subset sum, solved exactly (see `fullest`). So an item leaves with the `look_ahead`-th row after it
    was added, at the latest, and the n-th item is in one of the first n rows.

    Of the sets that are equally full, one is taken whose image tokens are near to the row's share of those
    that wait (see `balanced`). Ranks meet in every step, so the row with most vision work holds up all
    others; as each row takes what is usual among some hundred examples, rows of all ranks are much alike,
    and no rank has to know those of another.

    Raises ValueError for a config without a length.
    """

    def __init__(self, config: PackingConfig) -> None:
        if config.length is None:
            raise ValueError("data.packing.length is not set; give the tokens of a row")
        self.config, self.length = config, config.length
        self.waiting: list[_Item[T]] = []

    @property
    def items(self) -> list[T]:
        """What waits, in the order in which it was added."""
        return [waiting.item for waiting in self.waiting]

    @property
    def hungry(self) -> bool:
        """Whether more items are wanted before the next row is chosen."""
        tokens = sum(waiting.tokens for waiting in self.waiting)
        return len(self.waiting) < self.config.look_ahead and tokens < ROWS_AHEAD * self.length

    def problem(self, length: Length) -> str | None:
        """Why an item of this length fits no row; None if it does."""
        for value, what, key, limit in (
            (length.tokens, "tokens", "length", self.length),
            (length.images, "images", "max_images", self.config.max_images),
            (length.image_tokens, "image tokens", "max_image_tokens", self.config.max_image_tokens),
        ):
            if limit is not None and value > limit:
                return (
                    f"it has {value} {what}, more than the {limit} of data.packing.{key}, so it fits no row; "
                    f"{ADVICE[key].format(value=value)}"
                )
        return None

    def add(self, item: T, length: Length) -> None:
        """Let an item wait that has no `problem`."""
        load = _load(length, self.config)
        self.waiting.append(_Item(item, max(1, length.tokens), load, length.image_tokens))

    def row(self) -> list[T]:
        """The items of the next row, taken out; at least one must wait."""
        first, others = self.waiting[0], self.waiting[1:]
        chosen = self._chosen(first, others)
        self.waiting = [other for place, other in enumerate(others) if place not in chosen]
        return [first.item, *(other.item for place, other in enumerate(others) if place in chosen)]

    def _chosen(self, first: _Item[T], others: Sequence[_Item[T]]) -> set[int]:
        """Places of the others that join the first."""
        room, spare = self.length - first.tokens, _load_limit(self.config) - first.load
        tokens = sum(waiting.tokens for waiting in self.waiting)
        image_tokens = sum(waiting.image_tokens for waiting in self.waiting)
        share = self.length * image_tokens // tokens
        sizes = [(other.tokens, other.load, other.image_tokens) for other in others]
        chosen = balanced(sizes, room, spare, share - first.image_tokens, share // NEAR)
        if self.config.max_images or self.config.max_image_tokens:
            # Near its share a set may come up against a cap, so that a fuller one is missed.
            full = fullest([size[:2] for size in sizes], room, spare)
            if sum(sizes[place][0] for place in full) > sum(sizes[place][0] for place in chosen):
                chosen = full
        return set(chosen)


def fullest(sizes: Sequence[tuple[int, int]], room: int, spare: int) -> list[int]:
    """Places of the items `(tokens, load)` with most tokens within `room`, and with load within `spare`.

    Dynamic programming over the sum of tokens, which keeps for every sum the set of least load: O(items x
    room), exact. Items are tried in order until a set fills the room wholly, so earlier ones are preferred.
    The places are returned last one first.
    """
    least = np.full(room + 1, UNREACHED)
    least[0] = 0
    joins: list[np.ndarray] = []
    for tokens, load in sizes:
        joined = np.zeros(room + 1, dtype=bool)
        if tokens <= room:
            with_it = least[: room + 1 - tokens] + load
            better = (with_it < least[tokens:]) & (with_it <= spare)
            joined[tokens:] = better
            least[tokens:][better] = with_it[better]
        joins.append(joined)
        if least[room] != UNREACHED:
            break
    return _places(joins, [tokens for tokens, _ in sizes], int(np.flatnonzero(least != UNREACHED)[-1]))


def balanced(
    sizes: Sequence[tuple[int, int, int]], room: int, spare: int, target: int, near: int
) -> list[int]:
    """Places of items `(tokens, load, image tokens)` that fill `room`, with about `target` image tokens.

    As `fullest`, but for every sum of tokens the set is kept whose image tokens are nearest to that sum's
    share of `target`, so they are about `target` where the room is filled: not the nearest of all sets, which
    would take a table of both sums. It ends once the room is filled and `target` met within `near`. Where
    `spare` excludes nothing, the set is as full as that of `fullest`. All in whole numbers, so that every
    machine finds the same.
    """
    line = (target * np.arange(room + 1) // max(1, room)).astype(np.int32)
    images = np.full(room + 1, FAR, dtype=np.int32)
    away = np.full(room + 1, FAR // 2, dtype=np.int32)  # less than from any sum that is not reached
    loads, capped = np.zeros(room + 1, dtype=np.int64), any(load for _, load, _ in sizes)
    images[0] = away[0] = 0
    joins: list[np.ndarray] = []
    for tokens, load, image_tokens in sizes:
        joined = np.zeros(room + 1, dtype=bool)
        if tokens <= room:
            images_with = images[: room + 1 - tokens] + np.int32(image_tokens)
            away_with = np.abs(images_with - line[tokens:])
            better = np.less(away_with, away[tokens:], out=joined[tokens:])
            if capped:
                loads_with = loads[: room + 1 - tokens] + load
                better &= loads_with <= spare
                np.copyto(loads[tokens:], loads_with, where=better)
            np.copyto(images[tokens:], images_with, where=better)
            np.copyto(away[tokens:], away_with, where=better)
        joins.append(joined)
        if away[room] <= near:
            break
    return _places(joins, [size[0] for size in sizes], int(np.flatnonzero(away != FAR // 2)[-1]))


def _places(joins: Sequence[np.ndarray], tokens: Sequence[int], total: int) -> list[int]:
    """Places of the items of the set that was kept for `total` tokens, the last one first."""
    chosen = []
    for place in reversed(range(len(joins))):
        if joins[place][total]:
            chosen.append(place)
            total -= tokens[place]
    return chosen


@dataclass(frozen=True)
class _Item(Generic[T]):
    item: T
    tokens: int
    load: int
    """How much of the image caps it takes, out of `_load_limit`."""
    image_tokens: int


def _load_limit(config: PackingConfig) -> int:
    return (config.max_images or 1) * (config.max_image_tokens or 1)


def _load(length: Length, config: PackingConfig) -> int:
    """With both image caps, the larger of the two shares: within one limit on their sum, both caps hold."""
    return max(
        length.images * (config.max_image_tokens or 1) if config.max_images else 0,
        length.image_tokens * (config.max_images or 1) if config.max_image_tokens else 0,
    )


ADVICE = {
    "length": "raise it to {value} or more, or lower data.encoding.max_tokens",
    "max_images": "raise it to {value} or more, or leave the example out",
    "max_image_tokens": "raise it to {value} or more, or lower model.backbone.image's max_side or max_pixels",
}
