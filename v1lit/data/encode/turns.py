"""What follows an answer in a conversation that continues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from v1lit.backbones.processor import Processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import SequenceBuilder, add_messages
from v1lit.data.encode.given_regions import given_regions
from v1lit.data.encode.prompt import refuse_other_marks
from v1lit.data.example import Message
from v1lit.grounding.patch_map import PatchMap
from v1lit.grounding.region import Region


def next_turn(
    message: Message,
    ended: bool,
    patch_maps: Sequence[PatchMap],
    processor: Processor,
    config: EncodingConfig,
    before: Sequence[PatchMap] = (),
    regions: Mapping[str, Region] | None = None,
) -> list[int]:
    """The ids that follow an answer where the user continues, up to where the next answer begins.

    Args:
        message: the user's next, with a mark for each of its images.
        ended: whether the answer has the token that ends it.
        patch_maps: of the images of the message.
        processor: of the model.
        config: of the encoding.
        before: patch maps of the images that are in the conversation already.
        regions: that the message names, in any image so far.

    Raises EncodingError where marks and images are not as many, and RegionError as `given_regions`.
    """
    refuse_other_marks("question", [message], len(patch_maps))
    maps = [*before, *patch_maps]
    placed = given_regions([message], regions or {}, maps, processor)
    chat = processor.backbone.chat
    sequence = SequenceBuilder(processor, config, maps, images=[(0, 0)] * len(before))
    if not ended:
        sequence.add_mark(chat.stop)
    sequence.add_mark(chat.marks("assistant")[1].removeprefix(chat.stop))
    add_messages(sequence, [message], placed)
    sequence.add_mark(chat.marks("assistant")[0])
    return sequence.ids
