"""What follows an answer in a conversation that continues."""

from __future__ import annotations

from collections.abc import Sequence

from v1lit.backbones.processor import Processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import SequenceBuilder, add_messages
from v1lit.data.encode.prompt import refuse_other_marks
from v1lit.data.example import Message
from v1lit.grounding.patch_map import PatchMap


def next_turn(
    message: Message,
    ended: bool,
    patch_maps: Sequence[PatchMap],
    processor: Processor,
    config: EncodingConfig,
) -> list[int]:
    """The ids that follow an answer where the user continues, up to where the next answer begins.

    Args:
        message: the user's next, with a mark for each of its images.
        ended: whether the answer has the token that ends it.
        patch_maps: of the images of the message.
        processor: of the model.
        config: of the encoding.

    Raises EncodingError where marks and images are not as many.
    """
    refuse_other_marks("question", [message], len(patch_maps))
    chat, sequence = processor.backbone.chat, SequenceBuilder(processor, config, patch_maps)
    if not ended:
        sequence.add_mark(chat.stop)
    sequence.add_mark(chat.marks("assistant")[1].removeprefix(chat.stop))
    add_messages(sequence, [message], {})
    sequence.add_mark(chat.marks("assistant")[0])
    return sequence.ids
