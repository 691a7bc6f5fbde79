"""Example -> token ids and labels: conversation marks, image tokens, and regions as pointers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from v1lit.data.config import EncodingConfig
from v1lit.data.example import Example, Message
from v1lit.data.example.marks import IMAGE_MARKER, unescape
from v1lit.data.images import decode_image
from v1lit.grounding.patch_map import PatchMap
from v1lit.grounding.region import Region, Size
from v1lit.labels import IGNORE
from v1lit.revisit.strategy import Cut

if TYPE_CHECKING:
    from v1lit.backbones.processor import Processor


class EncodingError(ValueError):
    """An example that cannot become a sequence; the message names it."""


@dataclass(frozen=True)
class RegionSpan:
    """A region's pointers within a sequence."""

    name: str
    region: Region
    start: int
    """Position of the first pointer, tokens."""
    stop: int
    """Position behind the last pointer, tokens."""


@dataclass(frozen=True)
class Encoded:
    """One example as tensors, with what is needed to score and draw it."""

    id: str
    input_ids: Tensor
    """`[tokens]`; `pointer_start + j` points to the example's image token j, or ends a run: see `add_end`."""
    labels: Tensor
    """`[tokens]`, -100 where nothing is learned; not shifted."""
    image_inputs: dict[str, Tensor]
    """The backbone's image tensors, concatenated over the example's images; empty without an image."""
    patch_maps: tuple[PatchMap, ...]
    """One per image, and per crop of one, as they stand in the sequence."""
    regions: tuple[RegionSpan, ...]
    unseen: tuple[str, ...] = ()
    """Regions that no image token sees, such as those outside LLaVA's crop: written without pointers."""
    cut: int = 0
    """Tokens cut from the end to fit `max_tokens`."""


def encode(example: Example, processor: Processor, config: EncodingConfig) -> Encoded:
    """The whole example as ids and labels `[tokens]`, for training.

    Raises ImageError for an image that cannot be decoded, and EncodingError as `tokenize`.
    """
    images = [decode_image(image) for image in example.images]
    sequence = tokenize(example, patch_maps_of(example, processor), processor, config)
    kept = sequence.kept
    pictures = [
        images[what] if isinstance(what, int) else what.of(images[what.image]) for what in sequence.shown
    ]
    image_inputs, patch_maps = processor.images(pictures, among=len(images))
    return Encoded(
        id=example.id,
        input_ids=torch.tensor(sequence.ids[:kept]),
        labels=torch.tensor(sequence.labels[:kept]),
        image_inputs=image_inputs,
        patch_maps=tuple(patch_maps),
        regions=tuple(span for span in sequence.regions if span.stop <= kept),
        unseen=tuple(sequence.unseen),
        cut=len(sequence.ids) - kept,
    )


def patch_maps_of(example: Example, processor: Processor) -> list[PatchMap]:
    """What the image tokens of an example see, one map per image, from the sizes of the images alone.

    Raises EncodingError, naming example and image, for a size that the backbone refuses.
    """
    patch_maps = []
    for index, image in enumerate(example.images):
        try:
            patch_maps.append(processor.patch_map(image.size, among=len(example.images)))
        except ValueError as error:
            raise EncodingError(f"image {index} of example {example.id!r}: {error}") from error
    return patch_maps


def tokenize(
    example: Example, patch_maps: Sequence[PatchMap], processor: Processor, config: EncodingConfig
) -> SequenceBuilder:
    """Ids and labels of an example whose images have these patch maps, and how many of them are kept.

    Raises EncodingError, naming the example, if an image does not fit `max_tokens` or nothing is left to
    learn.
    """
    sequence = build(example.messages, example.regions, patch_maps, processor, config)
    sequence.kept = _fitting_length(example.id, sequence, config.max_tokens)
    if sequence.labels[: sequence.kept].count(IGNORE) == sequence.kept:
        raise EncodingError(
            f"example {example.id!r} has {len(sequence.ids)} tokens and nothing to learn in its first "
            f"{config.max_tokens}; raise data.encoding.max_tokens or make its images smaller"
        )
    return sequence


def image_ids(processor: Processor, patch_map: PatchMap) -> list[int]:
    """An image with the marks around it, as it stands in a sequence."""
    ids: list[int] = []
    for piece in processor.backbone.image_pieces(patch_map):
        if isinstance(piece, str):
            ids += processor.encode_text(piece)
        else:
            ids += [processor.image_token_id] * piece
    return ids


@dataclass
class SequenceBuilder:
    """Ids and labels as they grow, and the stretches that must stay whole: `(start, stop)` in tokens."""

    processor: Processor
    config: EncodingConfig
    patch_maps: Sequence[PatchMap]
    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    images: list[tuple[int, int]] = field(default_factory=list)
    cuts: list[tuple[int, Cut, PatchMap]] = field(default_factory=list)
    """Parts of images that are shown by themselves: position of the first token, what, and its patch map."""
    whole: list[tuple[int, int]] = field(default_factory=list)
    regions: list[RegionSpan] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    breaks: tuple[int, int] = (0, 0)
    """How many line breaks end what was added last, and the position behind: see `ChatFormat.joins_lines`."""
    kept: int = 0
    """Tokens from the first on that fit `max_tokens`; set by `tokenize`."""

    def add_mark(self, text: str, learn: bool = False) -> None:
        """Append a mark of the conversation, such as `<|im_end|>`."""
        self.add_tokens(self._continued(text, learn), learn)
        self._note_breaks(text, learn)

    def add_text(self, text: str, learn: bool) -> None:
        """Append somebody's words: marks in them are plain text."""
        self.add_tokens(self._continued(text, learn, special=False), learn)
        self._note_breaks(text, learn)

    def _continued(self, text: str, learn: bool, special: bool = True) -> list[int]:
        """Ids of a text, of which the line breaks at the start are one token with those that it continues.

        An answer's stand alone: what generation begins behind is fixed.
        """
        count, position = self.breaks
        before = self.processor.encode_text("\n" * count)
        goes_on = count and text.startswith("\n") and not learn and position == len(self.ids)
        if not goes_on or self.ids[-len(before) :] != before:
            return self.processor.encode_text(text, special)
        del self.ids[-len(before) :], self.labels[-len(before) :]
        return self.processor.encode_text("\n" * count + text, special)

    def _note_breaks(self, text: str, learn: bool) -> None:
        if text and self.processor.backbone.chat.joins_lines:
            count = 0 if learn else len(text) - len(text.rstrip("\n"))
            before = self.breaks[0] if count == len(text) else 0
            self.breaks = (count + before, len(self.ids))

    def add_tokens(self, ids: list[int], learn: bool) -> None:
        """Tokens that are learned if `learn`, or if all are.

        Source of "all": jun297/v1, v1/processor.py, lines 490-507.
        """
        learn = learn or self.config.supervise == "all"
        self.ids.extend(ids)
        self.labels.extend(ids if learn else [IGNORE] * len(ids))

    def add_image(self) -> None:
        """Append the next image: its marks and tokens, never learned."""
        start = len(self.ids)
        self._add_image_tokens(self.patch_maps[len(self.images)])
        self.images.append((start, len(self.ids)))

    def add_cut(self, cut: Cut) -> None:
        """Append a part of an image as a further image, never learned."""
        patch_map = self.patch_map_of(cut.size)
        self.cuts.append((len(self.ids), cut, patch_map))
        self._add_image_tokens(patch_map)

    def _add_image_tokens(self, patch_map: PatchMap) -> None:
        for piece in self.processor.backbone.image_pieces(patch_map):
            if isinstance(piece, str):
                ids = self._continued(piece, learn=False)
            else:
                ids = [self.processor.image_token_id] * piece
            self.ids.extend(ids)
            self.labels.extend([IGNORE] * len(ids))
            self._note_breaks(piece if isinstance(piece, str) else "", learn=False)

    def patch_map_of(self, size: Size) -> PatchMap:
        """The patch map of a crop of this `(width, height)`."""
        return self.processor.patch_map(size, among=len(self.patch_maps))

    @property
    def shown(self) -> list[int | Cut]:
        """The images, by index, and the parts of images that are kept, as they stand in the sequence."""
        places: list[tuple[int, int | Cut]] = [(start, k) for k, (start, _) in enumerate(self.images)]
        places += [(start, cut) for start, cut, _ in self._kept_cuts]
        return [what for _, what in sorted(places, key=itemgetter(0))]

    @property
    def shown_maps(self) -> list[PatchMap]:
        """The patch maps of what is shown, images before parts of images."""
        return [*self.patch_maps, *(patch_map for _, _, patch_map in self._kept_cuts)]

    @property
    def _kept_cuts(self) -> list[tuple[int, Cut, PatchMap]]:
        return [cut for cut in self.cuts if cut[0] < self.kept]

    @property
    def coordinates(self) -> bool:
        """Whether boxes are written before pointers."""
        return self.config.coordinates

    def add_pointers(
        self, name: str, region: Region, tokens: Sequence[int], learn: bool, first_only: bool = False
    ) -> None:
        """Append pointers to image tokens; a region that none of them sees is noted as unseen.

        With `first_only` those behind the first are no labels, whatever is supervised.
        """
        first = len(self.ids)
        self.add_tokens([self.processor.pointer_start + token for token in tokens], learn)
        if first_only:
            self.labels[first + 1 :] = [IGNORE] * len(tokens[1:])
        if tokens:
            self.regions.append(RegionSpan(name, region, first, len(self.ids)))
        else:
            self.unseen.append(name)

    def add_end(self, learn: bool) -> None:
        """Append the end of a run: the pointer behind those to all image tokens of the example."""
        self.add_tokens([self.processor.pointer_start + sum(map(len, self.patch_maps))], learn)

    def put_in(self, tokens: Sequence[int]) -> None:
        """Append image tokens once more, as pointers that are never learned."""
        self.ids.extend(self.processor.pointer_start + token for token in tokens)
        self.labels.extend([IGNORE] * len(tokens))

    def add_text_behind(self, text: str, learn: bool) -> None:
        """Append the words behind a region, with what the revisit strategy writes between them."""
        start = len(self.ids)
        rest = self.processor.revisit.write_behind(self, text, learn)
        self.whole.append((start, len(self.ids)))
        self.add_text(rest, learn)

    def add_region(self, name: str, region: Region, learn: bool) -> None:
        """Append what stands for a region, as the revisit strategy writes it."""
        start = len(self.ids)
        self.processor.revisit.write_region(self, name, region, learn)
        self.whole.append((start, len(self.ids)))


def build(
    messages: Sequence[Message],
    regions: Mapping[str, Region],
    patch_maps: Sequence[PatchMap],
    processor: Processor,
    config: EncodingConfig,
) -> SequenceBuilder:
    """The sequence of a conversation, whole, whose images have these patch maps."""
    sequence = SequenceBuilder(processor, config, patch_maps)
    chat = processor.backbone.chat
    sequence.add_mark(chat.start)
    if chat.default_system is not None and (not messages or messages[0].role != "system"):
        before, after = chat.marks("system")
        sequence.add_mark(before + chat.default_system + after)
    add_messages(sequence, messages, regions)
    return sequence


def add_messages(
    sequence: SequenceBuilder, messages: Sequence[Message], regions: Mapping[str, Region]
) -> None:
    """Append messages with the marks of their roles; names of these regions in them stand for pointers."""
    chat = sequence.processor.backbone.chat
    names = re.compile("|".join(map(re.escape, sorted(regions, key=len, reverse=True))) or r"(?!)")
    roles = ["", *(message.role for message in messages)]
    for message, previous in zip(messages, roles, strict=False):
        before, after = chat.marks(message.role)
        if chat.system_in_user and "system" in (message.role, previous):
            before = chat.user[0] + before if message.role == "system" else ""
            _refuse_far_system(message.role, previous)
        sequence.add_mark(before)
        _add_content(sequence, message, regions, names)
        if message.role == "assistant":
            sequence.add_mark(chat.stop, learn=True)
            after = after.removeprefix(chat.stop)
        sequence.add_mark(after)


def _refuse_far_system(role: str, previous: str) -> None:
    """Raise EncodingError where a system message is not followed by the user message that it belongs into."""
    if (role == "system" and previous) or (previous == "system" and role != "user"):
        what = f"{role} message behind a {previous} message"
        raise EncodingError(f"a {what}: this family writes a system message into the first user message")


def _add_content(
    sequence: SequenceBuilder, message: Message, regions: Mapping[str, Region], names: re.Pattern[str]
) -> None:
    learn = message.role == "assistant"
    for index, text in enumerate(message.content.split(IMAGE_MARKER)):
        if index > 0:
            sequence.add_image()
        start, add_text = 0, sequence.add_text
        for match in names.finditer(text):
            add_text(unescape(text[start : match.start()]), learn)
            sequence.add_region(match.group(), regions[match.group()], learn)
            start, add_text = match.end(), sequence.add_text_behind
        add_text(unescape(text[start:]), learn)


def _fitting_length(example_id: str, sequence: SequenceBuilder, max_tokens: int) -> int:
    """Tokens to keep: at most `max_tokens`, moved back to the start of a stretch that must stay whole."""
    if len(sequence.ids) <= max_tokens:
        return len(sequence.ids)
    for index, (start, stop) in enumerate(sequence.images):
        if stop > max_tokens:
            raise EncodingError(
                f"image {index} of example {example_id!r} needs tokens {start} to {stop} of a sequence "
                f"that may hold {max_tokens}; raise data.encoding.max_tokens or lower model.backbone.image's "
                "max_side or max_pixels"
            )
    return min([max_tokens, *(start for start, stop in sequence.whole if start < max_tokens < stop)])
