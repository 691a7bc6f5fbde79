"""A region of an image: a box, several boxes, a polygon or a mask, in pixels of the original image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from v1lit.grounding import raster

Box = tuple[float, float, float, float]
"""`(x1, y1, x2, y2)`: left, upper, right and lower edge in pixels of the original image; x1 < x2, y1 < y2."""

Size = tuple[int, int]
"""`(width, height)` in pixels."""

Kind = Literal["box", "boxes", "polygon", "mask"]

COORDINATE_LIMIT = 1e9
"""Coordinates beyond this are refused: no image is that large, and arithmetic on them would overflow."""

MASK_PIXEL_LIMIT = 100_000_000
"""Masks read from JSON are refused above this many pixels, before any memory is taken for them."""


@dataclass(frozen=True, eq=False, repr=False)
class Region:
    """A part of one image, made by one of the `from_...` class methods or by `of`."""

    kind: Kind
    """What `data` is."""
    data: Any
    """Pixels of the original image.

    Of a box its four numbers; of boxes, whose union counts, a tuple of them; of a polygon (even-odd rule) a
    tuple of `(x, y)` corners; of a mask a read-only bool array `[height, width]`.
    """
    image: int = 0
    """Index of the image, among those of the example, in which the region lies."""

    @classmethod
    def from_box(cls, box: Sequence[float], image: int = 0) -> Region:
        """A box `(x1, y1, x2, y2)`. Raises ValueError unless it is finite with x1 < x2 and y1 < y2."""
        return cls("box", _check_box(box), _check_image(image))

    @classmethod
    def from_boxes(cls, boxes: Sequence[Sequence[float]], image: int = 0) -> Region:
        """The union of one or more boxes, which may overlap."""
        if len(boxes) == 0:
            raise ValueError("a region needs at least one box, got none")
        return cls("boxes", tuple(_check_box(box) for box in boxes), _check_image(image))

    @classmethod
    def from_polygon(cls, points: Sequence[Sequence[float]], image: int = 0) -> Region:
        """A polygon of three or more `(x, y)` corners; where it crosses itself the even-odd rule decides."""
        return cls("polygon", _check_polygon(points), _check_image(image))

    @classmethod
    def from_mask(cls, mask: npt.ArrayLike, image: int = 0) -> Region:
        """A mask `[height, width]` of the whole image: bool, or integers where anything but 0 is inside."""
        array = np.asarray(mask)
        if array.ndim != 2 or array.dtype.kind not in "biu":
            raise ValueError(
                f"a mask is a boolean array [height, width], got shape {array.shape} of {array.dtype}; "
                "compare probabilities with a threshold first"
            )
        inside = array.astype(bool)  # A copy, which nobody else can change.
        if not inside.any():
            raise ValueError(f"the mask {inside.shape} has no pixel inside; a region cannot be empty")
        inside.setflags(write=False)
        return cls("mask", inside, _check_image(image))

    @classmethod
    def of(cls, thing: Region | Sequence[float] | npt.ArrayLike) -> Region:
        """A region unchanged, or that of a box of four numbers or of a mask `[height, width]`."""
        if isinstance(thing, Region):
            return thing
        if isinstance(thing, tuple | list) and len(thing) == 4:
            return cls.from_box(thing)
        if np.ndim(thing) == 1:
            return cls.from_box(np.asarray(thing).tolist())
        return cls.from_mask(thing)

    def at(self, image: int) -> Region:
        """The same region in another of the example's images."""
        return replace(self, image=_check_image(image))

    @property
    def box(self) -> Box:
        """The smallest box around the region; of a mask, around its pixels."""
        if self.kind == "box":
            return self.data
        if self.kind == "mask":
            x1, y1, x2, y2 = raster.mask_bounds(self.data)
            return float(x1), float(y1), float(x2), float(y2)
        corners = np.asarray(self.data).reshape(-1, 2)
        (x1, y1), (x2, y2) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        return x1, y1, x2, y2

    def boxes(self) -> npt.NDArray[np.float64] | None:
        """`[boxes, 4]` where the region is exactly a union of boxes; None for polygons and masks."""
        return np.asarray(self.data).reshape(-1, 4) if self.kind in ("box", "boxes") else None

    def mask(self, image_size: Size) -> npt.NDArray[np.bool_]:
        """`[height, width]`: the pixels inside.

        A pixel is inside if its centre is; a shape so thin that it holds no centre takes all pixels that its
        bounds touch. Parts outside the image are cut off. Raises ValueError for a mask at another size than
        its own.
        """
        if self.kind == "mask":
            if self.data.shape != (image_size[1], image_size[0]):
                size = self.data.shape[::-1]
                raise ValueError(
                    f"the mask is for an image of (width, height) {size}, not {tuple(image_size)}"
                )
            return self.data
        fill = raster.fill_polygon if self.kind == "polygon" else raster.fill_boxes
        mask = fill(np.asarray(self.data).reshape(-1, 2 if self.kind == "polygon" else 4), image_size)
        return mask if mask.any() else raster.fill_touched(self.box, image_size)

    def within(self, image_size: Size) -> bool:
        """Whether the region lies wholly inside an image of this size; a mask must have exactly the size."""
        if self.kind == "mask":
            return bool(self.data.shape == (image_size[1], image_size[0]))
        x1, y1, x2, y2 = self.box
        return x1 >= 0 and y1 >= 0 and x2 <= image_size[0] and y2 <= image_size[1]

    def clamped(self, image_size: Size, tolerance: float) -> Region:
        """The region, moved onto the image's edge where it reaches out by no more than `tolerance` pixels.

        It stays unchanged where it reaches out further, where nothing would be left, and if it is a mask.
        """
        if self.kind == "mask" or self.within(image_size):
            return self
        x1, y1, x2, y2 = self.box
        if max(-x1, -y1, x2 - image_size[0], y2 - image_size[1]) > tolerance:
            return self
        corners = np.asarray(self.data, dtype=float)
        inside = np.clip(corners.reshape(-1, 2), 0, image_size).reshape(corners.shape)
        try:
            return self.from_json({self.kind: inside.tolist()}, self.image)
        except ValueError:  # No area is left.
            return self

    def iou(self, other: Region, image_size: Size) -> float:
        """Intersection over union, 0 to 1: exact between boxes and unions of boxes, else counted in pixels.

        Regions of different images do not overlap.
        """
        if self.image != other.image:
            return 0.0
        a, b = self.boxes(), other.boxes()
        if a is not None and b is not None:
            shared = raster.shared_area(a, b)
            return shared / (raster.union_area(a) + raster.union_area(b) - shared)
        mine, theirs = self.mask(image_size), other.mask(image_size)
        union = int((mine | theirs).sum())
        return int((mine & theirs).sum()) / union if union else 0.0

    def to_json(self) -> list[Any] | dict[str, Any]:
        """Plain JSON: four numbers for a box in the first image, else an object; read back by `from_json`."""
        if self.kind == "mask":
            height, width = self.data.shape
            value: Any = {"size": [width, height], "runs": raster.encode_runs(self.data)}
        elif self.kind == "box":
            value = [_plain(v) for v in self.data]
        else:
            value = [[_plain(v) for v in item] for item in self.data]
        if self.kind == "box" and self.image == 0:
            return value
        return {self.kind: value, **({"image": self.image} if self.image else {})}

    @classmethod
    def from_json(cls, value: Any, image: int = 0) -> Region:
        """A region from plain JSON; `image` counts where the JSON itself names none.

        Understood are `[x1, y1, x2, y2]`, `{"box": [x1, y1, x2, y2]}`, `{"boxes": [[x1, y1, x2, y2], ...]}`,
        `{"polygon": [[x, y], ...]}` and `{"mask": {"size": [width, height], "runs": [...]}}` (lengths of
        runs, row by row, outside first), each object with an optional `"image"`. Raises ValueError for
        anything else.
        """
        if isinstance(value, list):
            return cls.from_box(value, image)
        makers: dict[str, Callable[[Any, int], Region]] = {
            "box": cls.from_box,
            "boxes": cls.from_boxes,
            "polygon": cls.from_polygon,
            "mask": cls._from_runs,
        }
        kinds = [key for key in value if key != "image"] if isinstance(value, Mapping) else []
        if len(kinds) != 1 or kinds[0] not in makers or not isinstance(value[kinds[0]], list | Mapping):
            raise ValueError(
                f'a region is [x1, y1, x2, y2] or an object with one of {", ".join(makers)} (and "image"), '
                f"got {_short(value)}"
            )
        return makers[kinds[0]](value[kinds[0]], value.get("image", image))

    @classmethod
    def _from_runs(cls, value: Any, image: int) -> Region:
        size, runs = (_whole_numbers(value, key) for key in ("size", "runs"))
        if len(size) != 2 or not 0 < size[0] * size[1] <= MASK_PIXEL_LIMIT:
            raise ValueError(
                f"the size of a mask is width and height, no more pixels than {MASK_PIXEL_LIMIT}: {size}"
            )
        if sum(runs) != size[0] * size[1]:
            raise ValueError(
                f"the runs of a mask add up to its {size[0] * size[1]} pixels, not to {sum(runs)}"
            )
        return cls.from_mask(raster.decode_runs(runs, (size[0], size[1])), image)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Region) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        data = f"{int(self.data.sum())} pixels in {self.box}" if self.kind == "mask" else repr(self.data)
        return f"Region({self.kind}: {data}{f', image {self.image}' if self.image else ''})"

    def _key(self) -> tuple[Any, ...]:
        data = (self.data.shape, self.data.tobytes()) if self.kind == "mask" else self.data
        return self.kind, data, self.image


def format_box(box: Sequence[float], image_size: Size) -> str:
    """A box as text: fractions of the image's width and height, `[0.10, 0.20, 0.50, 0.60]`.

    Source: jun297/v1, v1/processor.py, lines 94-103.
    """
    width, height = image_size
    x1, y1, x2, y2 = box
    return f"[{x1 / width:.2f}, {y1 / height:.2f}, {x2 / width:.2f}, {y2 / height:.2f}]"


def _check_box(box: Any) -> Box:
    sequence = type(box) is list or (isinstance(box, Sequence | np.ndarray) and not isinstance(box, str))
    if not sequence or len(box) != 4:
        raise ValueError(f"a box is four numbers x1, y1, x2, y2, got {_short(box)}")
    x1, y1, x2, y2 = _numbers(box)
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"a box is x1, y1, x2, y2 with x1 < x2 and y1 < y2, got {_short(list(box))}")
    return x1, y1, x2, y2


def _check_polygon(points: Any) -> tuple[tuple[float, float], ...]:
    if len(points) < 3 or any(np.ndim(point) != 1 or len(point) != 2 for point in points):
        raise ValueError(f"a polygon is three or more corners (x, y), got {_short(points)}")
    x, y = (_numbers([point[axis] for point in points]) for axis in (0, 1))
    if not (min(x) < max(x) and min(y) < max(y)):
        raise ValueError(f"the polygon has no area: {_short(points)}")
    return tuple(zip(x, y, strict=True))


def _numbers(values: Any) -> list[float]:
    for value in values:
        kind = type(value)  # First, here and below: asking whether it is a Real takes ten times as long.
        number = kind is float or kind is int or (isinstance(value, Real) and kind is not bool)
        if not number or not abs(value) <= COORDINATE_LIMIT:
            raise ValueError(
                f"a coordinate is a finite number of pixels, got {_short(value)} in {_short(list(values))}"
            )
    return list(map(float, values))


def _check_image(image: Any) -> int:
    whole = type(image) is int or (isinstance(image, Integral) and not isinstance(image, bool))
    if not whole or int(image) < 0:
        raise ValueError(f"image is the index of one of the example's images, 0 or more, got {_short(image)}")
    return int(image)


def _whole_numbers(value: Any, key: str) -> list[int]:
    numbers = value.get(key) if isinstance(value, Mapping) else None
    if not (isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)):
        raise ValueError(f'a mask needs "{key}", a list of whole numbers, got {_short(numbers)}')
    return numbers


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
