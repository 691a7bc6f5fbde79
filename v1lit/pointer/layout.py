"""Where image tokens, pointers and learned tokens stand in a batch, worked out on the host in one look.

Ids and labels are fetched from the device once, before anything is computed there; what follows from them is
sent back as indices. So no later step has to ask the device how many of something there are, and wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from v1lit.backbones.segments import Segments, send
from v1lit.labels import END, IGNORE, first_pointers
from v1lit.pointer.region_loss import RegionTargets
from v1lit.revisit.constant import Constant
from v1lit.revisit.controls import sequence_seeds


@dataclass(frozen=True)
class TokenLayout:
    """Where the image tokens and pointers of a batch stand, and which image token each pointer copies.

    A sequence is a row of a padded batch, or a segment of a packed row. Token indices count through the
    flattened `[batch * tokens]`, image token indices through all sequences.
    """

    sequence: Tensor
    """`[batch, tokens]`, on the host: index of the sequence that each token belongs to."""
    counts: tuple[int, ...]
    """Image tokens of each sequence."""
    images: Tensor
    """`[image_tokens]`: token indices of the image tokens."""
    visual: Tensor
    """`[visual]`: token indices of image tokens and pointers."""
    sources: Tensor
    """`[visual]`: index of the image token whose embedding stands at each of `visual`; that of the choice,
    through all sequences, where it is a pointer."""
    copied: Tensor
    """`[visual]`: whether each of `visual` is a pointer."""
    choices: tuple[int, ...]
    """What pointers of each sequence can choose from: its image tokens and, where that is a choice and it has
    any, the end of a run, which stands behind them."""
    blocks: tuple[tuple[int, int], ...] = ()
    """First token and the one behind the last of every run of image tokens in a sequence, in order."""
    seeds: tuple[int, ...] = ()
    """A number for each sequence, from which a control draws what is copied; empty without a control."""

    @classmethod
    def of(
        cls,
        input_ids: Tensor,
        image_token_id: int,
        pointer_start: int,
        segments: Segments | None = None,
        seeded: bool = False,
        ends: bool = False,
    ) -> TokenLayout:
        """The layout of `input_ids` `[batch, tokens]`, `[1, tokens]` where there are segments.

        With `ends` a pointer behind the last image token of a sequence is the end of a run. Raises ValueError
        for a pointer to an image token that its sequence does not have.
        """
        ids, device = input_ids.cpu(), input_ids.device
        if segments is None:
            sequence = torch.arange(len(ids))[:, None].expand_as(ids)
        else:
            sequence = segments.owners("cpu")[None]
        is_image, is_pointer = ids == image_token_id, ids >= pointer_start
        sequences = len(ids) if segments is None else len(segments.lengths)
        counts = torch.bincount(sequence[is_image], minlength=sequences)
        choices = counts + (counts > 0) if ends else counts
        copied = _copied(ids - pointer_start, is_pointer, sequence, counts, choices)
        own = is_image.flatten().cumsum(0).view_as(ids) - 1
        visual = is_image | is_pointer
        return cls(
            sequence,
            tuple(counts.tolist()),
            send(_token_indices(is_image), device),
            send(_token_indices(visual), device),
            send(torch.where(is_pointer, copied, own)[visual], device),
            send(is_pointer[visual], device),
            tuple(choices.tolist()),
            _blocks(is_image, sequence),
            sequence_seeds(ids, is_image, sequence, counts.tolist()) if seeded else (),
        )

    @cached_property
    def mask(self) -> Tensor:
        """`[sequences, pointers]`: whether a sequence has a j-th image token."""
        return self._mask(self.counts)

    @cached_property
    def choice_mask(self) -> Tensor:
        """`[sequences, pointers]`: whether a sequence has a j-th choice."""
        return self._mask(self.choices)

    @cached_property
    def ends(self) -> Tensor:
        """`[choices]`: index of the image token that each choice is, or of one behind all: the end."""
        places, first, total = [torch.empty(0, dtype=torch.long)], 0, sum(self.counts)
        for count, choices in zip(self.counts, self.choices, strict=True):
            places.append(F.pad(torch.arange(first, first + count), (0, choices - count), value=total))
            first += count
        return send(torch.cat(places), self.images.device)

    def _mask(self, counts: Sequence[int]) -> Tensor:
        mask = torch.arange(max(counts, default=0))[None] < torch.tensor(counts)[:, None]
        return send(mask, self.images.device)

    def with_ends(self, values: Tensor, end: Constant | None) -> Tensor:
        """`[choices, width]`: `[image_tokens, width]`, each sequence's followed by the end, if any."""
        if end is None:
            return values
        return torch.cat([values, end(values.new_empty(1, values.shape[1]))]).index_select(0, self.ends)

    def check(self, values: Tensor) -> Tensor:
        """`[image_tokens, width]`: the values as they are.

        Raises ValueError where there are more or fewer than placeholders: patches would be tied to the wrong
        tokens.
        """
        if values.shape[0] != sum(self.counts):
            raise ValueError(
                f"the vision tower gave {values.shape[0]} image tokens, but the text has {sum(self.counts)} "
                "placeholders; text and images were prepared with different image options"
            )
        return values

    def pad(self, flat: Tensor) -> Tensor:
        """`[image_tokens, width]` -> `[sequences, pointers, width]`, with zeros after a sequence's last."""
        return _padded(flat, self.mask)

    def pad_choices(self, flat: Tensor) -> Tensor:
        """The same of `[choices, width]`."""
        return _padded(flat, self.choice_mask)


@dataclass(frozen=True)
class Targets:
    """The supervised positions of a batch: tokens that are to predict the one after them, in order."""

    tokens: Tensor
    """`[positions]`: token indices of the tokens that predict."""
    labels: Tensor
    """`[positions]`: what they are to predict."""
    first: Tensor
    """`[positions]`: whether that is the first pointer of a run."""
    positions: tuple[int, ...]
    """Supervised positions of each sequence."""
    ends: Tensor | None = None
    """`[positions]`: the id that ends a run of the sequence of each, where that is a choice of pointers."""
    regions: RegionTargets | None = None
    """The regions whose patches are learned each by itself, where a strategy wants that."""

    def marked(self, ids: Tensor) -> Tensor:
        """Labels or predictions `[positions]`, `END` in place of the ids that end a run."""
        return ids if self.ends is None else ids.masked_fill(ids == self.ends, END)

    def part(self, some: slice) -> Targets:
        """The targets at some positions, from `some.start` to `some.stop`."""
        stops = accumulate(self.positions)
        overlaps = (
            min(end, some.stop) - max(end - count, some.start)
            for end, count in zip(stops, self.positions, strict=True)
        )
        counts = tuple(max(0, overlap) for overlap in overlaps)
        regions = None if self.regions is None else self.regions.part(some)
        ends = None if self.ends is None else self.ends[some]
        return Targets(self.tokens[some], self.labels[some], self.first[some], counts, ends, regions)

    @classmethod
    def of(
        cls, labels: Tensor, layout: TokenLayout, pointer_start: int, input_ids: Tensor | None = None
    ) -> Targets:
        """The targets of `labels` `[batch, tokens]`, not shifted, -100 where nothing is learned.

        With `input_ids` `[batch, tokens]` regions are targets as well.
        """
        device, labels, sequence = labels.device, labels.cpu(), layout.sequence
        # The last token of a segment does not learn the first of the next.
        follows = sequence[:, 1:] == sequence[:, :-1]
        supervised = (labels[:, 1:] != IGNORE) & follows
        owners = sequence[:, 1:][supervised]
        ends = regions = None
        if layout.choices != layout.counts:
            ends = send(pointer_start + torch.tensor(layout.counts)[owners], device)
        if input_ids is not None:
            regions = RegionTargets.of(input_ids.cpu(), labels, sequence, pointer_start)
        return cls(
            send(_token_indices(F.pad(supervised, (0, 1))), device),
            send(labels[:, 1:][supervised], device),
            send(first_pointers(labels, pointer_start)[:, 1:][supervised], device),
            tuple(torch.bincount(owners, minlength=len(layout.counts)).tolist()),
            ends,
            regions,
        )


def _blocks(is_image: Tensor, sequence: Tensor) -> tuple[tuple[int, int], ...]:
    """Bounds of all runs of image tokens, which end with their sequence."""
    image, owner = is_image.flatten(), sequence.flatten()
    inside = image[1:] & image[:-1] & (owner[1:] == owner[:-1])
    first, last = image & ~F.pad(inside, (1, 0)), image & ~F.pad(inside, (0, 1))
    return tuple(zip(_token_indices(first).tolist(), (_token_indices(last) + 1).tolist(), strict=True))


def _padded(flat: Tensor, mask: Tensor) -> Tensor:
    padded = flat.new_zeros(*mask.shape, flat.shape[-1])
    padded[mask] = flat
    return padded


def _token_indices(chosen: Tensor) -> Tensor:
    """`[batch, tokens]` -> `[chosen]`: indices of the tokens where `chosen` is true."""
    return chosen.flatten().nonzero()[:, 0]


def _copied(pointed: Tensor, is_pointer: Tensor, sequence: Tensor, counts: Tensor, choices: Tensor) -> Tensor:
    """`[batch, tokens]`: index through all sequences of what each pointer chooses.

    Raises ValueError for a pointer to an image token that its sequence does not have.
    """
    missing = is_pointer & (pointed >= choices[sequence])
    if bool(missing.any()):
        row, token = missing.nonzero()[0].tolist()
        raise ValueError(
            f"row {row}, position {token}: pointer to image token {int(pointed[row, token])}, "
            f"but its sequence has {int(counts[sequence[row, token]])}"
        )
    starts = torch.tensor(list(accumulate(choices.tolist()[:-1], initial=0)))
    return starts[sequence] + pointed
