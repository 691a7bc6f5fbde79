"""Which examples share a row: packs that fill a given number of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from v1lit.data.config import PackingConfig
from v1lit.data.encoding import Encoded

ROWS_AHEAD = 6
"""Enough examples wait when they would fill so many rows: more fill rows hardly better, and hold images."""
UNREACHED = np.iinfo(np.int64).max // 2


class PackingError(ValueError):
    """An example that fits no row, or rows without a length; the message names it."""


def pack(examples: Iterable[Encoded], config: PackingConfig) -> Iterator[list[Encoded]]:
    """Packs of at most `config.length` tokens: every example in exactly one, in an order of the input alone.

    Up to `config.look_ahead` examples wait, fewer where they would fill `ROWS_AHEAD` rows. The one that has
    waited longest opens the next pack, and of all sets of the others the one that fills the rest best joins
    it: a subset sum, solved exactly (see `fullest`). So an example leaves with the `look_ahead`-th pack after
    it was read, at the latest, and the n-th example is in one of the first n packs.

    Raises PackingError, naming the example and the key, for one that exceeds the length or a cap by itself,
    and for a config without a length.
    """
    if config.length is None:
        raise PackingError("data.packing.length is not set; give the tokens of a row")
    source = iter(examples)
    waiting: list[_Item] = []
    while True:
        _read_on(waiting, source, config, config.length)
        if not waiting:
            return
        first, others = waiting[0], waiting[1:]
        sizes = [(item.tokens, item.load) for item in others]
        chosen = set(fullest(sizes, config.length - first.tokens, _load_limit(config) - first.load))
        yield [first.example, *(item.example for place, item in enumerate(others) if place in chosen)]
        waiting = [item for place, item in enumerate(others) if place not in chosen]


def fullest(sizes: Sequence[tuple[int, int]], room: int, spare: int) -> list[int]:
    """The set of items `(tokens, load)` with most tokens within `room`, and with load within `spare`.

    Dynamic programming over the sum of tokens, which keeps for every sum the set of least load: O(items x
    room), exact. Items are tried in order until a set fills the room wholly, so earlier ones are preferred.
    Gives their places, last one first.
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
    total = int(np.flatnonzero(least != UNREACHED)[-1])
    chosen = []
    for place in reversed(range(len(joins))):
        if joins[place][total]:
            chosen.append(place)
            total -= sizes[place][0]
    return chosen


def _read_on(waiting: list[_Item], source: Iterator[Encoded], config: PackingConfig, length: int) -> None:
    """Read until enough examples wait, or none is left."""
    tokens = sum(item.tokens for item in waiting)
    while len(waiting) < config.look_ahead and tokens < ROWS_AHEAD * length:
        example = next(source, None)
        if example is None:
            return
        waiting.append(_item(example, config))
        tokens += waiting[-1].tokens


@dataclass(frozen=True)
class _Item:
    example: Encoded
    tokens: int
    load: int
    """How much of the image caps it takes, out of `_load_limit`."""


def _load_limit(config: PackingConfig) -> int:
    return (config.max_images or 1) * (config.max_image_tokens or 1)


def _item(example: Encoded, config: PackingConfig) -> _Item:
    """The example's size, checked against the limits.

    With both image caps, the larger of its two shares counts: within one limit on their sum, both caps hold.
    """
    images, image_tokens = len(example.patch_maps), sum(map(len, example.patch_maps))
    tokens = len(example.input_ids)
    for value, what, key, limit in (
        (tokens, "tokens", "length", config.length),
        (images, "images", "max_images", config.max_images),
        (image_tokens, "image tokens", "max_image_tokens", config.max_image_tokens),
    ):
        if limit is not None and value > limit:
            raise PackingError(
                f"example {example.id!r} has {value} {what}, more than the {limit} of data.packing.{key}: "
                f"it fits no row; {ADVICE[key].format(value=value)}"
            )
    load = max(
        images * (config.max_image_tokens or 1) if config.max_images else 0,
        image_tokens * (config.max_images or 1) if config.max_image_tokens else 0,
    )
    return _Item(example, tokens, load)


ADVICE = {
    "length": "raise it to {value} or more, or lower data.encoding.max_tokens",
    "max_images": "raise it to {value} or more, or leave the example out",
    "max_image_tokens": "raise it to {value} or more, or lower model.backbone.image's max_side or max_pixels",
}
