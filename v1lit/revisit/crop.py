"""Write boxes as text, and encode the pixels inside once more, larger."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from v1lit.errors import OptionError, check_least
from v1lit.grounding.markup import REGION, REGION_END
from v1lit.grounding.patch_map import PatchMap
from v1lit.grounding.region import Box, Region, Size
from v1lit.revisit.coordinates import Coordinates
from v1lit.revisit.strategy import Cut, PatchMapOf, RegionWriter

_NUMBER = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)"
_CLOSED = re.compile(
    rf"{REGION}\[{_NUMBER}, {_NUMBER}, {_NUMBER}, {_NUMBER}\](?: of image ([0-9]{{1,4}}))?{REGION_END}\Z"
)
SLENDER = 8
"""How many times as long as wide a crop is at most, where the image has room."""
SHRINK = 0.9
"""Of the sides, at each try to keep below a number of tokens."""


@dataclass(frozen=True)
class Crop(Coordinates):
    """`<region>[x1, y1, x2, y2]</region>`, and behind it the pixels of that box as a further image.

    Where an example has several images, ` of image 2` stands behind the box. What is cut out is what the
    text says, rounded as it is, so that training and generation cut out the same.
    """

    min_side: int = 112
    """Pixels that the smaller side of a crop is enlarged to."""
    max_tokens: int | None = None
    """Image tokens of a crop at most; it is made smaller until it has no more."""
    max_crops: int = 8
    """Crops in a generated answer at most; boxes after them are text alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("min_side", "max_tokens", "max_crops"):
            check_least(self, 1, name)

    def write_region(self, sequence: RegionWriter, name: str, region: Region, learn: bool) -> None:
        maps = sequence.patch_maps
        text = REGION + self.text(region.box, maps[region.image].image_size)
        if len(maps) > 1:
            text += f" of image {region.image + 1}"
        sequence.add_text(text, learn)
        sequence.add_text(REGION_END, learn)  # by itself, so that its tokens are always the same
        cut = self.cut(text + REGION_END, maps, sequence.patch_map_of)
        if cut is not None:
            sequence.add_cut(cut)

    def cut(self, text: str, maps: Sequence[PatchMap], patch_map_of: PatchMapOf) -> Cut | None:
        """What is cut out when a text has just closed a region; None if it ends with no box of an image.

        Args:
            text: as far as it is written.
            maps: one per image, crops left out.
            patch_map_of: makes the patch map of an image of a size.

        Raises OptionError where the smallest crop has more than `max_tokens`.
        """
        match = _CLOSED.search(text)
        image = int(match[5] or 1) - 1 if match else -1
        if match is None or not 0 <= image < len(maps):
            return None
        size = maps[image].image_size
        box = self.pixels([float(number) for number in match.groups()[:4]], size)
        if not (box[0] <= box[2] <= size[0] and box[1] <= box[3] <= size[1]):
            return None
        whole = widened(box, maps[image])
        return Cut(image, whole, self._size(whole, patch_map_of))

    def _size(self, box: tuple[int, int, int, int], patch_map_of: PatchMapOf) -> Size:
        """Of the crop, enlarged and, where it has too many tokens, made smaller."""
        sides = box[2] - box[0], box[3] - box[1]
        scale = max(1.0, self.min_side / min(sides))
        while True:
            width, height = (max(1, round(side * scale)) for side in sides)
            tokens = len(patch_map_of((width, height)))
            if self.max_tokens is None or tokens <= self.max_tokens:
                return width, height
            if max(width, height) == 1:
                why = f"the smallest crop has {tokens} tokens with these options of model.backbone.image"
                raise OptionError("max_tokens", self.max_tokens, why, self.GROUP)
            scale *= SHRINK


def widened(box: Box, patch_map: PatchMap) -> tuple[int, int, int, int]:
    """The box in whole pixels, at least a patch wide and high and not too slender, inside the image."""
    inside = patch_map.boxes[patch_map.spatial]
    patch = np.median(inside[:, 2:] - inside[:, :2], axis=0).tolist() if len(inside) else (1.0, 1.0)
    spans = []
    for axis in (0, 1):
        low, high, side = box[axis], box[axis + 2], patch_map.image_size[axis]
        other = box[3 - axis] - box[1 - axis]
        wanted = min(side, max(high - low, patch[axis], other / SLENDER, 1))
        low = min(max((low + high - wanted) / 2, 0), side - wanted)
        first, stop = math.floor(low + 1e-6), math.ceil(low + wanted - 1e-6)
        spans.append((first, max(stop, first + 1)))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]
