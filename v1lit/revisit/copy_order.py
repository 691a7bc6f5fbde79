"""In which order the patches of a region are pointed at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from v1lit.grounding.patch_map import PatchMap, token_ranges
from v1lit.grounding.region import Region


def in_order(maps: Sequence[PatchMap], region: Region, tokens: Sequence[int], order: str) -> list[int]:
    """The tokens that see a region, counted through all images, in this order.

    `scan`: as given. `nearest`: those whose centre is nearest to that of the region's box first. `overlap`:
    those first of which the largest share lies in the region's box. Ties keep the scan order.
    """
    if order == "scan" or not tokens:
        return list(tokens)
    patch_map = maps[region.image]
    first = token_ranges(maps)[region.image].start
    boxes = patch_map.boxes[np.array(tokens) - first]
    x1, y1, x2, y2 = region.box
    if order == "nearest":
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2 - [(x1 + x2) / 2, (y1 + y2) / 2]
        rank = np.hypot(*centres.T)
    else:
        sides = np.minimum(boxes[:, 2:], [x2, y2]) - np.maximum(boxes[:, :2], [x1, y1])
        whole = boxes[:, 2:] - boxes[:, :2]
        rank = -(sides.clip(min=0) / whole).prod(axis=1)
    return [tokens[index] for index in np.argsort(rank, kind="stable")]
