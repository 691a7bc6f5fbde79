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


@dataclass(frozen=True)
class TokenLayout:
    """Token j of a sequence is its j-th image token; a sequence is a row of a padded batch, or a segment.

    Places are numbers of tokens in the flattened `[rows * tokens]`; image tokens are numbered through all
    sequences.
    """

    sequence: Tensor
    """Number of the sequence that each token belongs to, `[rows, tokens]`, on the host."""
    counts: tuple[int, ...]
    """Image tokens of each sequence."""
    images: Tensor
    """Places of the image tokens, `[image_tokens]`."""
    visual: Tensor
    """Places of image tokens and pointers, `[visual]`."""
    sources: Tensor
    """The image token whose embedding stands at each of `visual`, `[visual]`."""

    @classmethod
    def of(
        cls, input_ids: Tensor, image_token_id: int, pointer_start: int, segments: Segments | None = None
    ) -> TokenLayout:
        """Of `[rows, tokens]` ids, `[1, tokens]` where these are segments.

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
            send(_places(is_image), device),
            send(_places(visual), device),
            send(torch.where(is_pointer, copied, own)[visual], device),
        )

    @cached_property
    def mask(self) -> Tensor:
        """True where a sequence has an image token of that number, `[sequences, pointers]`."""
        counts = torch.tensor(self.counts)
        mask = torch.arange(max(self.counts, default=0))[None] < counts[:, None]
        return send(mask, self.images.device)

    def check(self, values: Tensor) -> Tensor:
        """The values, `[image_tokens, width]`.

        Raises ValueError where their number is not that of the placeholders: going on would tie patches to
        the wrong places.
        """
        if values.shape[0] != sum(self.counts):
            raise ValueError(
                f"the vision tower gave {values.shape[0]} image tokens, but the text has {sum(self.counts)} "
                "placeholders; text and images were prepared with different image options"
            )
        return values

    def pad(self, flat: Tensor) -> Tensor:
        """`[image_tokens, width]` -> `[sequences, pointers, width]`, zeros behind a sequence's last."""
        padded = flat.new_zeros(*self.mask.shape, flat.shape[-1])
        padded[self.mask] = flat
        return padded


@dataclass(frozen=True)
class Targets:
    """Supervised positions: tokens that are to predict the one behind them, in order."""

    places: Tensor
    """Of the tokens that predict, `[positions]`."""
    labels: Tensor
    """What they are to predict, `[positions]`."""
    first: Tensor
    """Whether that is the first pointer of a run, `[positions]`."""
    positions: tuple[int, ...]
    """How many of them each sequence has."""

    @classmethod
    def of(cls, labels: Tensor, layout: TokenLayout, pointer_start: int) -> Targets:
        """Of labels `[rows, tokens]`, -100 where nothing is learned, not shifted."""
        device, labels, sequence = labels.device, labels.cpu(), layout.sequence
        # The last token of a segment does not learn the first of the next.
        follows = sequence[:, 1:] == sequence[:, :-1]
        supervised = (labels[:, 1:] != IGNORE) & follows
        owners = sequence[:, 1:][supervised]
        return cls(
            send(_places(F.pad(supervised, (0, 1))), device),
            send(labels[:, 1:][supervised], device),
            send(first_pointers(labels, pointer_start)[:, 1:][supervised], device),
            tuple(torch.bincount(owners, minlength=len(layout.counts)).tolist()),
        )


def _places(chosen: Tensor) -> Tensor:
    """`[rows, tokens]` -> `[chosen]`"""
    return chosen.flatten().nonzero()[:, 0]


def _copied(pointed: Tensor, is_pointer: Tensor, sequence: Tensor, counts: Tensor) -> Tensor:
    """The image tokens that are pointed at, numbered through all sequences; meaningless elsewhere."""
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
