"""Regions of images, the image tokens that see them, the trace text that names them, and pictures of these.

There is no neural network in here: numpy and Pillow only.
"""

from v1lit.grounding.draw import draw_regions, draw_tokens, panel
from v1lit.grounding.patch_map import (
    NOT_SPATIAL,
    OVERVIEW,
    TILE,
    PatchMap,
    Views,
    region_tokens,
    token_regions,
)
from v1lit.grounding.picture import ImageError, as_seen
from v1lit.grounding.region import Box, Region, Size, format_box
from v1lit.grounding.trace import (
    Detect,
    DetectedObject,
    ParsedTrace,
    Problem,
    Trace,
    format_object,
    format_trace,
    parse_trace,
)

__all__ = [
    "NOT_SPATIAL",
    "OVERVIEW",
    "TILE",
    "Box",
    "Detect",
    "DetectedObject",
    "ImageError",
    "ParsedTrace",
    "PatchMap",
    "Problem",
    "Region",
    "Size",
    "Trace",
    "Views",
    "as_seen",
    "draw_regions",
    "draw_tokens",
    "format_box",
    "format_object",
    "format_trace",
    "panel",
    "parse_trace",
    "region_tokens",
    "token_regions",
]
