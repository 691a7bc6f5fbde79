"""Which part of the original image every image token sees, and from there regions to tokens and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from v1lit.grounding import raster
from v1lit.grounding.region import Box, Region, Size

TILE, OVERVIEW, NOT_SPATIAL = 0, 1, -1
"""Levels of a token: sees a patch in full detail, a patch of a shrunk whole image, or no place at all."""

Views = Literal["all", "tiles", "overview"]

EDGE_TOLERANCE = 1e-9
"""Share of a token's width (or height) by which a box must reach into it to count: edges that are equal but
for the rounding of floats never catch a neighbour, and no overlap that means anything is missed."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PatchMap:
    """The image tokens of one image, in their order: where each looks and at which level.

    Attributes:
        image_size: (width, height) of the original image.
        boxes: float64 [tokens, 4], x1, y1, x2, y2 in pixels of the original image; NaN where not spatial.
        levels: int8 [tokens]: TILE, OVERVIEW or NOT_SPATIAL (separators, newlines).
        views: which tokens count where views of different level show the same place. "all": every one.
            "tiles": those of tiles, or of the overview for a region that no tile shows. "overview": the other
            way round. Without effect where there is a single view.

    Both arrays are copies and read-only.
    """

    image_size: Size
    boxes: Floats
    levels: npt.NDArray[np.int8]
    views: Views = "all"
    _inner: Floats = field(init=False, repr=False)
    _two_views: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        boxes = np.array(self.boxes, dtype=np.float64).reshape(-1, 4)
        levels = np.array(self.levels, dtype=np.int8)
        _check_table(boxes, levels)
        # [4, tokens], one row per edge, each drawn in by the tolerance: what a box must pass to count.
        inward = EDGE_TOLERANCE * np.stack([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]])
        values = {
            "image_size": (int(self.image_size[0]), int(self.image_size[1])),
            "boxes": boxes,
            "levels": levels,
            "views": _check_views(self.views),
            "_inner": np.ascontiguousarray(boxes.T) + np.concatenate([inward, -inward]),
            "_two_views": bool((levels == TILE).any() and (levels == OVERVIEW).any()),
        }
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
            object.__setattr__(self, name, value)

    @classmethod
    def grid(
        cls,
        image_size: Size,
        rows: int,
        cols: int,
        box: Box | None = None,
        level: int = TILE,
        views: Views = "all",
    ) -> PatchMap:
        """An even grid over `box` (default: the whole image), tokens row by row.

        `box` may reach beyond the image, as a padded canvas does: tokens are cut at the image's edge, and
        those left with nothing are not spatial. ValueError for a grid without rows or columns.
        """
        if rows < 1 or cols < 1:
            raise ValueError(f"a grid has at least one row and one column, got {rows} x {cols}")
        width, height = image_size
        x1, y1, x2, y2 = box if box is not None else (0.0, 0.0, float(width), float(height))
        # Multiplied before divided: with whole numbers every edge is the float nearest to the true one.
        xs = np.clip(x1 + np.arange(cols + 1) * (x2 - x1) / cols, 0, width)
        ys = np.clip(y1 + np.arange(rows + 1) * (y2 - y1) / rows, 0, height)
        boxes = np.empty((rows, cols, 4))
        boxes[..., 0], boxes[..., 2] = xs[:-1], xs[1:]
        boxes[..., 1], boxes[..., 3] = ys[:-1, None], ys[1:, None]
        # What is left of a token by rounding alone counts as nothing.
        wide = np.diff(xs) > EDGE_TOLERANCE * (x2 - x1) / cols
        high = np.diff(ys) > EDGE_TOLERANCE * (y2 - y1) / rows
        seen = (high[:, None] & wide).ravel()
        levels = np.where(seen, level, NOT_SPATIAL)
        return cls(image_size, np.where(seen[:, None], boxes.reshape(-1, 4), np.nan), levels, views)

    @classmethod
    def blank(cls, image_size: Size, tokens: int, views: Views = "all") -> PatchMap:
        """Tokens that see no place, such as separators: material for `join`."""
        return cls(image_size, np.full((tokens, 4), np.nan), np.full(tokens, NOT_SPATIAL), views)

    @classmethod
    def join(cls, parts: Iterable[PatchMap], views: Views | None = None) -> PatchMap:
        """The tokens of maps of one image, one after the other; `views` defaults to the first map's."""
        maps = list(parts)
        sizes = sorted({part.image_size for part in maps})
        if len(sizes) != 1:
            raise ValueError(f"parts of one map belong to one image, got the image sizes {sizes}")
        return cls(
            maps[0].image_size,
            np.concatenate([part.boxes for part in maps]),
            np.concatenate([part.levels for part in maps]),
            maps[0].views if views is None else views,
        )

    def __len__(self) -> int:
        return len(self.levels)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PatchMap)
            and (self.image_size, self.views) == (other.image_size, other.views)
            and np.array_equal(self.levels, other.levels)
            and np.array_equal(self.boxes, other.boxes, equal_nan=True)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def spatial(self) -> npt.NDArray[np.bool_]:
        """Which tokens see a place, bool [tokens]."""
        return self.levels != NOT_SPATIAL

    def tokens(
        self, region: Region | Sequence[float] | npt.ArrayLike, views: Views | None = None
    ) -> list[int]:
        """The tokens that see some of `region`, ascending; none where the region lies in no token's view.

        A box (or one of several) counts for a token if the two overlap with a positive area: on a grid, lower
        edges are floored and upper edges ceiled to whole tokens. A polygon or mask counts where it leaves a
        value above zero when it is resampled to the tokens with an antialiased bilinear filter, which looks
        one token's width beyond the token's centre to every side.

        Args:
            region: a Region, a box (x1, y1, x2, y2), or a bool mask [height, width] of the whole image.
            views: instead of the map's own `views`.
        """
        if isinstance(region, np.ndarray) and region.ndim == 2 and not region.any():
            return []  # which is no Region, but a mask that people have
        region = Region.of(region)
        if region.kind == "box":
            hit = self._overlaps(region.data)
        elif region.kind == "boxes":
            hit = np.logical_or.reduce([self._overlaps(box) for box in region.data])
        else:
            hit = self._sampled(region.mask(self.image_size))
        if self._two_views:
            hit = self._choose(hit, self.views if views is None else _check_views(views))
        return np.flatnonzero(hit).tolist()

    def region(self, tokens: Iterable[int]) -> Region:
        """The union of what `tokens` see: a box where they fill one, else several boxes.

        On a map with a single view `tokens` of it gives the same tokens again. Tokens that see no place are
        passed over; ValueError if there is no other, or for a token that the map does not have.
        """
        chosen = sorted({int(token) for token in tokens})
        if chosen and not (chosen[0] >= 0 and chosen[-1] < len(self)):
            raise ValueError(f"the image has tokens 0 to {len(self) - 1}, got {chosen[0]} to {chosen[-1]}")
        boxes = self.boxes[chosen] if chosen else self.boxes[:0]
        boxes = boxes[~np.isnan(boxes[:, 0])]
        if len(boxes) == 0:
            raise ValueError(f"none of the tokens {chosen[:10]} sees a place in the image")
        union = Region.from_boxes(boxes.tolist())
        x1, y1, x2, y2 = union.box
        full = raster.union_area(boxes) >= (1 - EDGE_TOLERANCE) * (x2 - x1) * (y2 - y1)
        return Region.from_box(union.box) if full else union

    def _overlaps(self, box: Box) -> npt.NDArray[np.bool_]:
        x1, y1, x2, y2 = self._inner
        return (x1 < box[2]) & (x2 > box[0]) & (y1 < box[3]) & (y2 > box[1])

    def _sampled(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which tokens a mask of the whole image reaches when it is resampled to them; bool [tokens]."""
        if not mask.any():
            return np.zeros(len(self), dtype=bool)
        left, upper, right, lower = raster.mask_bounds(mask)
        # Pixels of the mask above and left of every corner; the empty margin is left out.
        sums = np.zeros((lower - upper + 1, right - left + 1), dtype=np.int64)
        inside = mask[upper:lower, left:right]
        np.cumsum(np.cumsum(inside, axis=0, dtype=np.int64), axis=1, out=sums[1:, 1:])
        spatial = self.spatial
        boxes = self.boxes[spatial]
        x1, x2 = (np.clip(x, left, right) - left for x in _support(boxes[:, 0], boxes[:, 2], mask.shape[1]))
        y1, y2 = (np.clip(y, upper, lower) - upper for y in _support(boxes[:, 1], boxes[:, 3], mask.shape[0]))
        hit = np.zeros(len(self), dtype=bool)
        hit[spatial] = sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1] > 0
        return hit

    def _choose(self, hit: npt.NDArray[np.bool_], views: Views) -> npt.NDArray[np.bool_]:
        if views == "all":
            return hit
        preferred = hit & (self.levels == (TILE if views == "tiles" else OVERVIEW))
        return preferred if preferred.any() else hit


def token_ranges(maps: Sequence[PatchMap]) -> list[range]:
    """Of each image the tokens that are its own, counted through all images of an example."""
    ends = list(accumulate(map(len, maps), initial=0))
    return [range(start, end) for start, end in pairwise(ends)]


def region_tokens(maps: Sequence[PatchMap], region: Region) -> list[int]:
    """The tokens of an example that see `region`, counted through all its images: those of image k come after
    those of images 0 to k-1. ValueError if the region's image is not there.
    """
    if region.image >= len(maps):
        raise ValueError(f"the region lies in image {region.image}, but the example has {len(maps)} image(s)")
    start = token_ranges(maps)[region.image].start
    return [start + token for token in maps[region.image].tokens(region)]


def token_regions(maps: Sequence[PatchMap], tokens: Iterable[int]) -> list[Region]:
    """What `tokens`, counted through all images of an example, see: one region for each image they touch.

    Tokens that see no place are passed over. ValueError for a token that no image has.
    """
    chosen = np.array(sorted(set(tokens)), dtype=np.int64)
    total = sum(map(len, maps))
    if len(chosen) and not (chosen[0] >= 0 and chosen[-1] < total):
        raise ValueError(f"the example has {total} image tokens, got tokens {chosen[0]} to {chosen[-1]}")
    regions = []
    for image, (patch_map, span) in enumerate(zip(maps, token_ranges(maps), strict=True)):
        own = chosen[(chosen >= span.start) & (chosen < span.stop)] - span.start
        own = own[patch_map.spatial[own]]
        if len(own):
            regions.append(patch_map.region(own.tolist()).at(image))
    return regions


def _support(
    lower: Floats, upper: Floats, length: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pixels `first` to `last - 1`: what an antialiased bilinear filter looks at for tokens with these edges.

    The weight falls from 1 at the token's centre to 0 at one token's width (at least a pixel) from it.
    Whether a pixel exactly there counts is decided by rounding in the single precision of the published
    implementation, which is therefore followed step by step: the width is rounded, and the centre is a number
    of rounded widths.
    """
    width = (upper - lower).astype(np.float32)
    steps = (lower + upper) / (2 * (upper - lower))
    halves = np.rint(2 * steps) / 2
    steps = np.where(np.abs(steps - halves) < 1e-6, halves, steps)
    centre = (width * steps).astype(np.float32)
    support = np.maximum(width, np.float32(1))
    first = np.maximum(((centre - support).astype(np.float64) + 0.5).astype(np.int64), 0)
    last = np.minimum(((centre + support).astype(np.float64) + 0.5).astype(np.int64), length)

    def weighs(pixel: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        offset = (pixel.astype(np.float32) - centre).astype(np.float64) + 0.5
        return np.abs((offset * (np.float32(1) / support)).astype(np.float32)) < 1

    first = first + ~weighs(first)
    return first, np.maximum(last - ~weighs(last - 1), first)


def _check_table(boxes: Floats, levels: npt.NDArray[np.int8]) -> None:
    if levels.shape != (len(boxes),):
        raise ValueError(f"every token has one level: {len(boxes)} boxes, levels of shape {levels.shape}")
    if not np.isin(levels, (TILE, OVERVIEW, NOT_SPATIAL)).all():
        raise ValueError(
            f"a level is {TILE} (tile), {OVERVIEW} (overview) or {NOT_SPATIAL} (not spatial), got {levels}"
        )
    spatial = levels != NOT_SPATIAL
    if not np.isnan(boxes[~spatial]).all():
        raise ValueError("a token that is not spatial has NaN for a box")
    sound = np.isfinite(boxes).all(axis=1) & (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    wrong = np.flatnonzero(spatial & ~sound)
    if len(wrong):
        raise ValueError(f"the box of token {wrong[0]} is empty or not a number: {boxes[wrong[0]].tolist()}")


def _check_views(views: str) -> Views:
    for allowed in get_args(Views):
        if views == allowed:
            return allowed
    raise ValueError(f'views is one of {", ".join(get_args(Views))}, got "{views}"')
