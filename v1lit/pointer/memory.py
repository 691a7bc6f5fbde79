"""The image tokens of a batch, one row each: what may be pointed at, and what is copied."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
    """Where the image tokens stand in a batch of sequences. Token j of a row is its j-th image token."""

    is_image: Tensor
    """True at image tokens, `[batch, tokens]`."""
    mask: Tensor
    """True where a row has an image token of that number, `[batch, pointers]`."""

    @classmethod
    def of(cls, input_ids: Tensor, image_token_id: int) -> ImageSlots:
        is_image = input_ids == image_token_id
        counts = is_image.sum(dim=1)
        pointers = int(counts.max()) if counts.numel() else 0
        return cls(is_image, torch.arange(pointers, device=input_ids.device)[None] < counts[:, None])

    @property
    def ordinals(self) -> Tensor:
        """Number of each image token within its row, `[batch, tokens]`; meaningless elsewhere."""
        return self.is_image.cumsum(dim=1) - 1

    def pad(self, flat: Tensor) -> Tensor:
        """`[image_tokens, width]`, row-major -> `[batch, pointers, width]`, zeros behind a row's last.

        Raises ValueError where the number of features is not that of the placeholders: going on would tie
        patches to the wrong places.
        """
        expected = int(self.mask.sum())
        if flat.shape[0] != expected:
            raise ValueError(
                f"the vision tower gave {flat.shape[0]} image tokens, but the text has {expected} "
                "placeholders; text and images were prepared with different image options"
            )
        padded = flat.new_zeros(*self.mask.shape, flat.shape[-1])
        padded[self.mask] = flat
        return padded

    def gather(self, states: Tensor) -> Tensor:
        """States at the image tokens, `[batch, tokens, width]` -> `[batch, pointers, width]`."""
        return self.pad(states[self.is_image])


def embed_with_copies(
    text: Tensor, values: Tensor, slots: ImageSlots, input_ids: Tensor, pointer_start: int
) -> Tensor:
    """Input embeddings of mixed sequences, `[batch, tokens, hidden]`.

    `text` holds the embeddings of the text tokens. Image tokens get their own value, a pointer
    `pointer_start + j` gets a copy of image token j's. Raises ValueError for a pointer to an image token that
    its row does not have.
    """
    is_pointer = input_ids >= pointer_start
    indices = torch.where(is_pointer, input_ids - pointer_start, slots.ordinals)
    visual = is_pointer | slots.is_image
    limits = slots.mask.sum(dim=1, keepdim=True)
    if bool((is_pointer & (indices >= limits)).any()):
        row, token = (is_pointer & (indices >= limits)).nonzero()[0].tolist()
        raise ValueError(
            f"row {row}, position {token}: pointer to image token {int(indices[row, token])}, "
            f"but the row has {int(limits[row, 0])}"
        )
    if values.shape[1] == 0:
        return text
    copies = copy_values(values, indices.clamp(min=0))
    return torch.where(visual[..., None], copies, text)


def copy_values(values: Tensor, indices: Tensor) -> Tensor:
    """`values[b, indices[b, t]]`, `[batch, tokens, hidden]`.

    values `[batch, pointers, hidden]`, indices `[batch, tokens]`.
    """
    indices = indices.clamp(max=values.shape[1] - 1)
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))
