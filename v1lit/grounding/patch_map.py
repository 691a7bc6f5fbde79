"""Which part of the original image every image token sees: from regions to tokens and back."""

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
"""The view of a token: a patch in full detail, a patch of the whole image shrunk, or no part of it."""

Views = Literal["all", "tiles", "overview"]

EDGE_TOLERANCE = 1e-9
"""Share of a token's width or height by which a box must reach into it to count.

Edges that are equal but for the rounding of floats never catch a neighbour, and no real overlap is missed.
"""

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PatchMap:
    """For every image token of one image, in order: the box that it sees, and its view.

    Both arrays are copies and read-only.
    """

    image_size: Size
    """`(width, height)` of the original image, in pixels."""
    boxes: Floats
    """`[tokens, 4]`: x1, y1, x2, y2 in pixels of the original image; NaN where not spatial."""
    token_views: npt.NDArray[np.int8]
    """`[tokens]`: TILE, OVERVIEW or NOT_SPATIAL (separators, newlines)."""
    views: Views = "all"
    """Which tokens count where tiles and overview show the same part of the image.

    "all": every one. "tiles": those of tiles, or of the overview for a region that no tile shows. "overview":
    the other way round. Without effect where there is a single view.
    """
    _inner: Floats = field(init=False, repr=False)
    _two_views: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        boxes = np.array(self.boxes, dtype=np.float64).reshape(-1, 4)
        token_views = np.array(self.token_views, dtype=np.int8)
        _check_table(boxes, token_views)
        # `[4, tokens]`: the edges, each moved inward by the tolerance; a box must pass them to count.
        inward = EDGE_TOLERANCE * np.stack([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]])
        values = {
            "image_size": (int(self.image_size[0]), int(self.image_size[1])),
            "boxes": boxes,
            "token_views": token_views,
            "views": _check_views(self.views),
            "_inner": np.ascontiguousarray(boxes.T) + np.concatenate([inward, -inward]),
            "_two_views": bool((token_views == TILE).any() and (token_views == OVERVIEW).any()),
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
        view: int = TILE,
        views: Views = "all",
    ) -> PatchMap:
        """An even grid over `box`, by default the whole image, with tokens row by row.

        `box` may reach beyond the image, as a padded canvas does: tokens are cut at the image's edge, and
        those left with nothing are not spatial. Raises ValueError for a grid without rows or columns.
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
        token_views = np.where(seen, view, NOT_SPATIAL)
        return cls(image_size, np.where(seen[:, None], boxes.reshape(-1, 4), np.nan), token_views, views)

    @classmethod
    def blank(cls, image_size: Size, tokens: int, views: Views = "all") -> PatchMap:
        """A map of tokens that see no part of the image, such as separators: material for `join`."""
        return cls(image_size, np.full((tokens, 4), np.nan), np.full(tokens, NOT_SPATIAL), views)

    @classmethod
    def join(cls, parts: Iterable[PatchMap], views: Views | None = None) -> PatchMap:
        """The tokens of several maps of one image, one map after the other.

        `views` is by default the first map's. Raises ValueError for maps of different images.
        """
        maps = list(parts)
        sizes = sorted({part.image_size for part in maps})
        if len(sizes) != 1:
            raise ValueError(f"parts of one map belong to one image, got the image sizes {sizes}")
        return cls(
            maps[0].image_size,
            np.concatenate([part.boxes for part in maps]),
            np.concatenate([part.token_views for part in maps]),
            maps[0].views if views is None else views,
        )

    def resized(self, image_size: Size) -> PatchMap:
        """The map of the same image in another size, `(width, height)`."""
        # Multiplied before divided: the image's own edges stay exact.
        boxes = self.boxes * (image_size + image_size) / (self.image_size + self.image_size)
        return PatchMap(image_size, boxes, self.token_views, self.views)

    def __len__(self) -> int:
        return len(self.token_views)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PatchMap)
            and (self.image_size, self.views) == (other.image_size, other.views)
            and np.array_equal(self.token_views, other.token_views)
            and np.array_equal(self.boxes, other.boxes, equal_nan=True)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def spatial(self) -> npt.NDArray[np.bool_]:
        """`[tokens]`: whether a token sees a part of the image."""
        return self.token_views != NOT_SPATIAL

    def tokens(
        self, region: Region | Sequence[float] | npt.ArrayLike, views: Views | None = None
    ) -> list[int]:
        """Indices of the tokens that see some of `region`, ascending; none where no token sees it.

        A box (or one of several) counts for a token if the two overlap with a positive area: on a grid, lower
        edges are floored and upper edges ceiled to whole tokens. A polygon or mask counts where it leaves a
        value above zero when it is resampled to the tokens with an antialiased bilinear filter, which looks
        one token's width beyond the token's centre to every side.
        Source: jun297/v1, v1/processor.py, lines 141-178 (boxes) and 180-201 (masks).

        Args:
            region: a Region, a box `(x1, y1, x2, y2)`, or a bool mask `[height, width]` of the whole image.
            views: in place of the map's own `views`.
        """
        if isinstance(region, np.ndarray) and region.ndim == 2 and not region.any():
            return []  # A mask with nothing inside is no Region, but there are such masks.
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

        On a map with a single view whose tokens share no pixels, `self.tokens` of it returns the same. Tokens
        that are not spatial are passed over. Raises ValueError if there are no others, and for tokens that
        the map does not have.
        """
        chosen = sorted({int(token) for token in tokens})
        if chosen and not (chosen[0] >= 0 and chosen[-1] < len(self)):
            raise ValueError(f"the image has tokens 0 to {len(self) - 1}, got {chosen[0]} to {chosen[-1]}")
        boxes = self.boxes[chosen] if chosen else self.boxes[:0]
        boxes = boxes[~np.isnan(boxes[:, 0])]
        if len(boxes) == 0:
            raise ValueError(f"none of the tokens {chosen[:10]} sees a part of the image")
        union = Region.from_boxes(boxes.tolist())
        x1, y1, x2, y2 = union.box
        full = raster.union_area(boxes) >= (1 - EDGE_TOLERANCE) * (x2 - x1) * (y2 - y1)
        return Region.from_box(union.box) if full else union

    def _overlaps(self, box: Box) -> npt.NDArray[np.bool_]:
        x1, y1, x2, y2 = self._inner
        return (x1 < box[2]) & (x2 > box[0]) & (y1 < box[3]) & (y2 > box[1])

    def _sampled(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """`[tokens]`: whether a mask of the whole image leaves anything when resampled to the token."""
        if not mask.any():
            return np.zeros(len(self), dtype=bool)
        left, upper, right, lower = raster.mask_bounds(mask)
        # How many pixels of the mask lie above and left of every corner, without its empty margin.
        sums = np.zeros((lower - upper + 1, right - left + 1), dtype=np.int64)
        inside = mask[upper:lower, left:right]
        np.cumsum(np.cumsum(inside, axis=0, dtype=np.int64), axis=1, out=sums[1:, 1:])
        spatial = self.spatial
        boxes = self.boxes[spatial]
        x1, x2 = (np.clip(x, left, right) - left for x in _filtered(boxes[:, 0], boxes[:, 2], mask.shape[1]))
        y1, y2 = (
            np.clip(y, upper, lower) - upper for y in _filtered(boxes[:, 1], boxes[:, 3], mask.shape[0])
        )
        hit = np.zeros(len(self), dtype=bool)
        hit[spatial] = sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1] > 0
        return hit

    def _choose(self, hit: npt.NDArray[np.bool_], views: Views) -> npt.NDArray[np.bool_]:
        if views == "all":
            return hit
        preferred = hit & (self.token_views == (TILE if views == "tiles" else OVERVIEW))
        return preferred if preferred.any() else hit


def token_ranges(maps: Sequence[PatchMap]) -> list[range]:
    """Of each image the tokens that are its own, counted through all images of an example."""
    ends = list(accumulate(map(len, maps), initial=0))
    return [range(start, end) for start, end in pairwise(ends)]


def region_tokens(maps: Sequence[PatchMap], region: Region) -> list[int]:
    """The tokens of an example that see `region`, counted through all its images.

    Those of image k come after those of images 0 to k - 1. Raises ValueError if the example does not have the
    region's image.
    """
    if region.image >= len(maps):
        raise ValueError(f"the region lies in image {region.image}, but the example has {len(maps)} image(s)")
    start = token_ranges(maps)[region.image].start
    return [start + token for token in maps[region.image].tokens(region)]


def token_regions(maps: Sequence[PatchMap], tokens: Iterable[int]) -> list[Region]:
    """What `tokens`, counted through all images of an example, see: one region for each image they touch.

    Tokens that are not spatial are passed over. Raises ValueError for a token that no image has.
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


def _filtered(lower: Floats, upper: Floats, length: int) -> tuple[Indices, Indices]:
    """Pixels `first` to `stop - 1` of a line of `length` that resampling to tokens with these edges reads.

    The weight of a pixel is a triangle, from 1 at the token's centre to 0 at `reach`: one token's width, but
    at least a pixel. Whether a pixel right where it ends counts is decided by rounding in single precision,
    so every step is that of torch, whose token i has its centre at `width * (i + 0.5)`.
    Source: torch, aten/src/ATen/native/cpu/UpSampleKernel.cpp, `_compute_indices_min_size_weights_aa`.
    """
    width = (upper - lower).astype(np.float32)
    widths = (lower + upper) / (2 * (upper - lower))  # from the line's start to the centre
    halves = np.rint(2 * widths) / 2
    on_grid = np.abs(widths - halves) < 1e-6
    centre = (width * np.where(on_grid, halves, widths)).astype(np.float32)
    reach = np.maximum(width, np.float32(1))

    def has_weight(pixel: Indices) -> npt.NDArray[np.bool_]:
        distance = (pixel.astype(np.float32) - centre).astype(np.float64) + 0.5
        return np.abs((distance * (np.float32(1) / reach)).astype(np.float32)) < 1

    first = np.maximum(((centre - reach).astype(np.float64) + 0.5).astype(np.int64), 0)
    stop = np.minimum(((centre + reach).astype(np.float64) + 0.5).astype(np.int64), length)
    first = first + ~has_weight(first)
    return first, np.maximum(stop - ~has_weight(stop - 1), first)


def _check_table(boxes: Floats, token_views: npt.NDArray[np.int8]) -> None:
    if token_views.shape != (len(boxes),):
        raise ValueError(f"every token has one view: {len(boxes)} boxes, views of shape {token_views.shape}")
    if not np.isin(token_views, (TILE, OVERVIEW, NOT_SPATIAL)).all():
        raise ValueError(
            f"a view is {TILE} (tile), {OVERVIEW} (overview) or {NOT_SPATIAL} (not spatial): {token_views}"
        )
    spatial = token_views != NOT_SPATIAL
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
