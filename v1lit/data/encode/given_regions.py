"""Regions that somebody gives with a question, checked before they are written into a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from v1lit.data.encode.encoding import EncodingError
from v1lit.data.example import Message
from v1lit.data.example.example import EDGE_TOLERANCE
from v1lit.data.example.marks import escape
from v1lit.grounding.markup import REGION_NAME
from v1lit.grounding.patch_map import PatchMap, region_tokens
from v1lit.grounding.region import Region
from v1lit.revisit.crop import Crop
from v1lit.revisit.text_only import TextOnly

if TYPE_CHECKING:
    from v1lit.backbones.processor import Processor


class RegionError(EncodingError):
    """A region that a question names cannot be written into its prompt.

    Args:
        name: of the region, such as `<|region_1|>`.
        why: what is wrong with it, and what to do.
    """

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.name, self.why = name, why


def given_regions(
    messages: Sequence[Message],
    regions: Mapping[str, Region],
    patch_maps: Sequence[PatchMap],
    processor: Processor,
) -> dict[str, Region]:
    """The regions that messages name, moved onto the edge of their image where rounding took them out of it.

    Args:
        messages: of the prompt.
        regions: by name, in pixels of their images as displayed.
        patch_maps: one per image that the regions may lie in.
        processor: of the model.

    Raises RegionError for a name without a region and a region that no message names, for one that reaches
    out of its image or that no image token sees, and under a strategy that could not show it.
    """
    named = dict.fromkeys(name for message in messages for name in REGION_NAME.findall(message.content))
    for name in named:
        if name not in regions:
            why = f"it is named, but no such region is given; where the word is meant, write {escape(name)}"
            raise RegionError(name, why)
    return {
        name: _placed(name, region, name in named, patch_maps, processor) for name, region in regions.items()
    }


def _placed(
    name: str, region: Region, is_named: bool, patch_maps: Sequence[PatchMap], processor: Processor
) -> Region:
    if not is_named:
        raise RegionError(name, f"it is given, but never named: write {name} where it is meant")
    if isinstance(processor.revisit, TextOnly | Crop):
        shown = "writes nothing of regions" if isinstance(processor.revisit, TextOnly) else "encodes crops"
        why = f"the strategy {type(processor.revisit).__name__} {shown}, which is not done in questions"
        raise RegionError(name, f"{why}; describe it in words, or ask a model that copies")
    if region.image >= len(patch_maps):
        count = len(patch_maps)
        raise RegionError(name, f"it lies in image {region.image}, counted from 0, and there are {count}")
    width, height = size = patch_maps[region.image].image_size
    region = region.clamped(size, EDGE_TOLERANCE)
    if not region.within(size):
        is_mask = region.kind == "mask"
        given = f"{region.data.shape[1]} x {region.data.shape[0]}" if is_mask else f"{list(region.box)}"
        why = f"{'the mask of' if is_mask else 'it reaches from'} {given} pixels"
        raise RegionError(name, f"{why}, and its image has {width} x {height}: give pixels of the original")
    if processor.revisit.points and not region_tokens(patch_maps, region):
        why = f"{list(region.box)} is seen by no image token, so there is nothing to copy"
        raise RegionError(name, f"{why}; the backbone may cut off the edges of an image")
    return region
