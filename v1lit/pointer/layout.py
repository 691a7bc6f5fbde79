"""Where image tokens, pointers and learned tokens stand in a batch, worked out on the host in one look.

Ids and labels are fetched from the device once, before anything is computed there; what follows from them is
sent back as indices. So no later step has to ask the device how many of something there are, and wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from v1lit.backbones.segments import Segments, send
from v1lit.labels import IGNORE, first_pointers
from v1lit.pointer.region_loss import RegionTargets
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
    """`[visual]`: index of the image token whose embedding stands at each of `visual`."""
    copied: Tensor
    """`[visual]`: whether each of `visual` is a pointer."""
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
    ) -> TokenLayout:
        """The layout of `input_ids` `[batch, tokens]`, `[1, tokens]` where there are segments.

        Raises ValueError for a pointer to an image token that its sequence does not have.
        """
        ids, device = input_ids.cpu(), input_ids.device
        if segments is None:
            sequence = torch.arange(len(ids))[:, None].expand_as(ids)
        else:
            sequence = segments.owners("cpu")[None]
        is_image, is_pointer = ids == image_token_id, ids >= pointer_start
        sequences = len(ids) if segments is None else len(segments.lengths)
        counts = torch.bincount(sequence[is_image], minlength=sequences)
        copied = _copied(ids - pointer_start, is_pointer, sequence, counts)
        own = is_image.flatten().cumsum(0).view_as(ids) - 1
        visual = is_image | is_pointer
        return cls(
            sequence,
            tuple(counts.tolist()),
            send(_token_indices(is_image), device),
            send(_token_indices(visual), device),
            send(torch.where(is_pointer, copied, own)[visual], device),
            send(is_pointer[visual], device),
            sequence_seeds(ids, is_image, sequence, counts.tolist()) if seeded else (),
        )

    @cached_property
    def mask(self) -> Tensor:
        """`[sequences, pointers]`: whether a sequence has a j-th image token."""
        counts = torch.tensor(self.counts)
        mask = torch.arange(max(self.counts, default=0))[None] < counts[:, None]
        return send(mask, self.images.device)

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
        padded = flat.new_zeros(*self.mask.shape, flat.shape[-1])
        padded[self.mask] = flat
        return padded


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
    regions: RegionTargets | None = None
    """The regions whose patches are learned each by itself, where a strategy wants that."""

    def part(self, some: slice) -> Targets:
        """The targets at some positions, from `some.start` to `some.stop`."""
        ends = accumulate(self.positions)
        overlaps = (
            min(end, some.stop) - max(end - count, some.start)
            for end, count in zip(ends, self.positions, strict=True)
        )
        counts = tuple(max(0, overlap) for overlap in overlaps)
        regions = None if self.regions is None else self.regions.part(some)
        return Targets(self.tokens[some], self.labels[some], self.first[some], counts, regions)

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
        regions = None
        if input_ids is not None:
            regions = RegionTargets.of(input_ids.cpu(), labels, sequence, pointer_start)
        return cls(
            send(_token_indices(F.pad(supervised, (0, 1))), device),
            send(labels[:, 1:][supervised], device),
            send(first_pointers(labels, pointer_start)[:, 1:][supervised], device),
            tuple(torch.bincount(owners, minlength=len(layout.counts)).tolist()),
            regions,
        )


def _token_indices(chosen: Tensor) -> Tensor:
    """`[batch, tokens]` -> `[chosen]`: indices of the tokens where `chosen` is true."""
    return chosen.flatten().nonzero()[:, 0]


def _copied(pointed: Tensor, is_pointer: Tensor, sequence: Tensor, counts: Tensor) -> Tensor:
    """`[batch, tokens]`: index through all sequences of the image token that each pointer points at.

    Raises ValueError for a pointer to an image token that its sequence does not have.
    """
    limits = counts[sequence]
    missing = is_pointer & (pointed >= limits)
    if bool(missing.any()):
        row, token = missing.nonzero()[0].tolist()
        raise ValueError(
            f"row {row}, position {token}: pointer to image token {int(pointed[row, token])}, "
            f"but its sequence has {int(limits[row, token])}"
        )
    starts = torch.tensor(list(accumulate(counts.tolist()[:-1], initial=0)))
    return starts[sequence] + pointed
