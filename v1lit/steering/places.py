"""Where a model may look: only here, never there, or one place that hangs together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from v1lit.grounding.patch_map import EDGE_TOLERANCE, PatchMap, region_tokens
from v1lit.grounding.region import Region
from v1lit.steering.rule import Pointed, PointerRule


class Places(PointerRule):
    """Only some image tokens can be pointed at.

    Args:
        allowed: `[prompts, pointers]` bool, for every prompt of the batch; what lies beyond is not allowed.
            Samples and beams of a prompt follow each other, as in `generate`.
        pointer_start: as in `PointerRule`.
        prompt_length: as in `PointerRule`.
        image_token_id: as in `PointerRule`.
    """

    def __init__(
        self, allowed: Tensor, pointer_start: int, prompt_length: int, image_token_id: int | None = None
    ) -> None:
        super().__init__(pointer_start, prompt_length, image_token_id)
        self.allowed = allowed

    def gone(self, pointed: Pointed, pointers: int) -> Tensor:
        rows = pointed.patches
        return ~_per_row(_as_wide(self.allowed, pointers, False), rows)


class Connected(PointerRule):
    """A run hangs together: each of its patches but the first touches one before it, corners included.

    Args:
        patch_maps: of every prompt, one per image.
        pointer_start: as in `PointerRule`.
        prompt_length: as in `PointerRule`.
        image_token_id: as in `PointerRule`.
    """

    def __init__(
        self,
        patch_maps: Sequence[Sequence[PatchMap]],
        pointer_start: int,
        prompt_length: int,
        image_token_id: int | None = None,
    ) -> None:
        super().__init__(pointer_start, prompt_length, image_token_id)
        self.boxes, self.sheets = _tables(patch_maps)

    def gone(self, pointed: Pointed, pointers: int) -> Tensor:
        patches, run = pointed.patches, pointed.run
        longest = int(run.sum(1).max()) if run.numel() else 0
        if longest == 0 or pointers == 0:
            return torch.zeros(len(patches), 1, dtype=torch.bool, device=patches.device)
        boxes = _per_row(_as_wide(self.boxes.to(patches.device), pointers, torch.nan), patches)
        sheets = _per_row(_as_wide(self.sheets.to(patches.device), pointers, -1), patches)
        own, real = patches[:, -longest:].clamp(min=0), run[:, -longest:]
        before = boxes.gather(1, own[..., None].expand(-1, -1, 4))[:, :, None]
        touches = _touch(before, boxes[:, None]) & (sheets.gather(1, own)[:, :, None] == sheets[:, None])
        return ~(touches & real[..., None]).any(1) & run.any(1, keepdim=True)


def allowed_tokens(
    patch_maps: Sequence[PatchMap], inside: Sequence[Region] | None, outside: Sequence[Region]
) -> list[bool]:
    """`[image_tokens]`: whether an image token of an example sees some of `inside`, and nothing of `outside`.

    `inside` is None for everywhere. Raises ValueError for a region of an image that there is not, and where
    no token is left.
    """
    tokens = sum(map(len, patch_maps))
    if not tokens:
        return []  # a prompt without an image: nothing to point at anyway
    wanted = range(tokens) if inside is None else {t for r in inside for t in region_tokens(patch_maps, r)}
    left = set(wanted).difference(*(region_tokens(patch_maps, region) for region in outside))
    if not left:
        raise ValueError(
            f"no image token sees something of inside={inside or 'everywhere'} and nothing of outside="
            f"{list(outside)}; widen the one, narrow the other, or forbid pointing altogether (points=False)"
        )
    return [token in left for token in range(tokens)]


def _tables(patch_maps: Sequence[Sequence[PatchMap]]) -> tuple[Tensor, Tensor]:
    """Box `[prompts, pointers, 4]` of every image token, and on which sheet `[prompts, pointers]` it lies.

    A sheet is one of the views of one image.
    """
    rows = [
        (
            np.concatenate([m.boxes for m in maps]) if maps else np.zeros((0, 4)),
            np.concatenate([4 * i + 1 + m.token_views for i, m in enumerate(maps)]) if maps else np.zeros(0),
        )
        for maps in patch_maps
    ]
    longest = max((len(sheets) for _, sheets in rows), default=0)
    boxes = torch.full((len(rows), longest, 4), torch.nan, dtype=torch.float64)
    on = torch.full((len(rows), longest), -1)
    for row, (own, sheets) in enumerate(rows):
        boxes[row, : len(own)] = torch.as_tensor(own)
        on[row, : len(own)] = torch.as_tensor(sheets).long()
    return boxes, on


def _touch(one: Tensor, other: Tensor) -> Tensor:
    """Whether boxes `[..., 4]` share more than nothing or an edge or corner; never where one is NaN."""
    slack = EDGE_TOLERANCE * 10 * (one[..., 2:] - one[..., :2] + other[..., 2:] - other[..., :2])
    return ((one[..., :2] <= other[..., 2:] + slack) & (other[..., :2] <= one[..., 2:] + slack)).all(-1)


def _as_wide(table: Tensor, pointers: int, fill: float) -> Tensor:
    """`[prompts, pointers, ...]`: a table with as many columns as there are pointers."""
    missing = pointers - table.shape[1]
    if missing <= 0:
        return table[:, :pointers]
    more = table.new_full((table.shape[0], missing, *table.shape[2:]), fill)
    return torch.cat([table, more], dim=1)


def _per_row(table: Tensor, rows: Tensor) -> Tensor:
    """`[rows, ...]`: the entry of a prompt for each of its samples or beams."""
    return table.to(rows.device).repeat_interleave(len(rows) // len(table), dim=0)
