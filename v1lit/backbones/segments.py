"""Examples that share a row: how long each is, and what follows from that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from v1lit.backbones.config import ATTENTION
from v1lit.backbones.contract import Backbone
from v1lit.errors import explain_unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Not frozen: torch.compile before 2.14 looks into frozen dataclasses, and compiles anew for other lengths.
@dataclass(unsafe_hash=True)
class Segments:
    """Examples that stand one behind another in one row of tokens, without padding.

    Raises ValueError for no segments, an empty one, or a kernel that does not exist.
    """

    lengths: tuple[int, ...]
    """Tokens of each segment, at least 1; host integers, so that no kernel has to ask the GPU for one."""
    attention: str = "sdpa"
    """Name of the kernel that attends inside the segments, see `choose_attention`."""
    blocks: tuple[tuple[int, int], ...] = ()
    """First token and the one behind the last of every image whose tokens see each other in both directions,
    in order; each lies inside one segment. Empty for decoders in which no token sees a later one."""

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"segments must have at least one token each, not {list(self.lengths)}")
        kernels = [name for name in ATTENTION if name != "auto"]
        if self.attention not in kernels:
            raise ValueError(explain_unknown("attention", self.attention, kernels))

    @property
    def tokens(self) -> int:
        """Tokens of the row."""
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest segment."""
        return max(self.lengths)

    def bounds(self, device: torch.device | str) -> Tensor:
        """Ends of the segments: 0, end of the first, ..., tokens; int32 `[segments + 1]`."""
        return _bounds(self.lengths, torch.device(device))

    def owners(self, device: torch.device | str) -> Tensor:
        """Index of the segment of each token; int64 `[tokens]`."""
        return _owners(self.lengths, torch.device(device))

    def block_ids(self, device: torch.device | str) -> Tensor:
        """Index of the image block of each token, -1 outside of all; int64 `[tokens]`."""
        return _block_ids(self.blocks, self.tokens, torch.device(device))


# Every layer asks for the same, so each is copied to the device once per row. These tensors outlive the mode
# they were asked for in: as inference tensors they could not be kept for a backward pass later on.
@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _bounds(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return send(torch.tensor([0, *lengths]).cumsum(0).int(), device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _owners(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return send(torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)), device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _block_ids(blocks: tuple[tuple[int, int], ...], tokens: int, device: torch.device) -> Tensor:
    return send(block_ids(blocks, tokens), device)


def block_ids(blocks: Sequence[tuple[int, int]], tokens: int) -> Tensor:
    """Index of the block of each token, -1 outside of all; int64 `[tokens]` on the host."""
    ids = torch.full((tokens,), -1)
    for index, (start, stop) in enumerate(blocks):
        ids[start:stop] = index
    return ids


def send(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device."""
    # From pinned memory the copy does not wait for the GPU's queue of work.
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def packed_positions(
    family: Backbone, model: PreTrainedModel, input_ids: Tensor, segments: Segments, **image_inputs: Any
) -> Tensor:
    """Positions of a packed row, starting anew in every segment: `[1, tokens]` or `[3, 1, tokens]`.

    input_ids `[1, tokens]`, pointers already replaced by a text id as for `Backbone.positions`, which is
    asked; image_inputs: those of all images of the row in order (pixels are not needed). Raises ValueError
    if the segments do not fill the row.

    Computed on the CPU, since transformers asks for single numbers and each such question to a GPU would wait
    for it; the result is on the device of `input_ids`.
    """
    if input_ids.shape != (1, segments.tokens):
        raise ValueError(
            f"segments of {segments.tokens} tokens need input_ids [1, {segments.tokens}], "
            f"not {list(input_ids.shape)}"
        )
    # A segment per row, filled up at the end.
    rows = pad_sequence(list(input_ids[0].cpu().split(segments.lengths)), batch_first=True)
    mask = (torch.arange(rows.shape[1]) < torch.tensor(segments.lengths)[:, None]).long()
    inputs = {name: value.cpu() for name, value in image_inputs.items() if not value.is_floating_point()}
    positions = family.positions(model, rows, mask, **inputs)
    return send(positions[..., mask.bool()].unsqueeze(-2), input_ids.device)
