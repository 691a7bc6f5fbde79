"""The image tokens of a batch: what may be pointed at, and what is copied."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from v1lit.backbones.segments import Segments


@dataclass
class PointerMemory:
    """Keys, values and mask of the image tokens of every row, kept beside the KV cache while decoding."""

    keys: Tensor
    """Projected keys, `[batch, pointers, width]`."""
    values: Tensor
    """Input embeddings of the image tokens, `[batch, pointers, hidden]`."""
    mask: Tensor
    """True where a row has that image token, `[batch, pointers]`."""


@dataclass(frozen=True)
class ImageSlots:
    """Where the image tokens stand in a batch. Token j of a sequence is its j-th image token.

    A sequence is a row of a padded batch, or a segment of a packed row.
    """

    is_image: Tensor
    """True at image tokens, `[rows, tokens]`."""
    sequence: Tensor
    """Number of the sequence that each token belongs to, `[rows, tokens]`."""
    counts: tuple[int, ...]
    """Image tokens of each sequence."""

    @classmethod
    def of(cls, input_ids: Tensor, image_token_id: int, segments: Segments | None = None) -> ImageSlots:
        """Slots of `[rows, tokens]` ids, of `[1, tokens]` where these are segments."""
        is_image = input_ids == image_token_id
        if segments is None:
            sequences = input_ids.shape[0]
            sequence = torch.arange(sequences, device=input_ids.device)[:, None].expand_as(input_ids)
        else:
            sequences = len(segments.lengths)
            sequence = segments.owners(input_ids.device)[None]
        return cls(is_image, sequence, per_sequence(sequence[is_image], sequences))

    @cached_property
    def mask(self) -> Tensor:
        """True where a sequence has an image token of that number, `[sequences, pointers]`."""
        counts = torch.tensor(self.counts, device=self.is_image.device)
        return torch.arange(max(self.counts, default=0), device=counts.device)[None] < counts[:, None]

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


def per_sequence(owners: Tensor, sequences: int) -> tuple[int, ...]:
    """How many of the elements belong to each sequence; `[elements]` numbers of sequences."""
    return tuple(torch.bincount(owners, minlength=sequences).tolist())


def embed_with_copies(
    text: Tensor, values: Tensor, slots: ImageSlots, input_ids: Tensor, pointer_start: int
) -> Tensor:
    """Input embeddings of mixed sequences, `[rows, tokens, hidden]`.

    `text` holds the embeddings of the text tokens, `values` `[image_tokens, hidden]` those of the image
    tokens of all sequences in order. Image tokens get their own value, a pointer `pointer_start + j` gets a
    copy of image token j's of its sequence. Raises ValueError for a pointer to an image token that its
    sequence does not have.
    """
    is_pointer = input_ids >= pointer_start
    copied = _copied_tokens(input_ids - pointer_start, is_pointer, slots)
    own = slots.is_image.flatten().cumsum(0).view_as(input_ids) - 1
    source = torch.where(is_pointer, copied, own).flatten()
    places = (is_pointer | slots.is_image).flatten().nonzero()[:, 0]
    embedded = text.flatten(0, 1).index_copy(0, places, values.index_select(0, source[places]))
    return embedded.view_as(text)


def _copied_tokens(pointed: Tensor, is_pointer: Tensor, slots: ImageSlots) -> Tensor:
    """Among the image tokens of all sequences, those pointed at, `[rows, tokens]`; meaningless elsewhere."""
    starts, counts = torch.tensor(
        [list(accumulate(slots.counts[:-1], initial=0)), slots.counts], device=pointed.device
    )
    limits = counts[slots.sequence]
    missing = is_pointer & (pointed >= limits)
    if bool(missing.any()):
        row, token = missing.nonzero()[0].tolist()
        raise ValueError(
            f"row {row}, position {token}: pointer to image token {int(pointed[row, token])}, "
            f"but its sequence has {int(limits[row, token])}"
        )
    return starts[slots.sequence] + pointed


def copy_values(values: Tensor, indices: Tensor) -> Tensor:
    """`values[b, indices[b, t]]`, `[batch, tokens, hidden]`.

    values `[batch, pointers, hidden]`, indices `[batch, tokens]`.
    """
    indices = indices.clamp(max=values.shape[1] - 1)
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))
