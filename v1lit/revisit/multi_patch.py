"""Point at all patches of a region in one decoding step: those whose score is over a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import LogitsProcessor

from v1lit.errors import OptionError, check_fields
from v1lit.grounding.region import Region
from v1lit.revisit.point_and_copy import PointAndCopy
from v1lit.revisit.strategy import GROUP, EncodeText, RegionWriter
from v1lit.revisit.suppression import last_run, pointed_at


@dataclass(frozen=True)
class MultiPatch(PointAndCopy):
    """Traces as of `point_and_copy`, of which a region's first pointer alone is a label.

    The label says when to look, and at one patch for sure. At the position that predicts it, every image
    token is learned by itself as well: whether it belongs to the region. At decoding, the patches over the
    threshold at the step that chose a pointer follow it, row by row, and then the run is over. Source:
    MINT-CoT, arXiv 2506.05331, which has a token of the vocabulary in place of the first pointer.

    The limit `max_copies` holds at decoding as well: of more patches, those of the highest scores follow.
    """

    beams: ClassVar[bool] = False

    threshold: float = 0.5
    """Probability over which a patch follows, `sigmoid(score)` of the pointer head's scores."""
    weight: float = 1.0
    """Of the mean over regions of the binary cross-entropy of their patches, beside the joint loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ends:
            why = "the patches over the threshold follow a region's first pointer, and then the run is over"
            raise OptionError("end", self.end, why, GROUP)
        check_fields(self, ["threshold"], lambda share: 0 < share < 1, "it must lie in (0, 1)")
        check_fields(self, ["weight"], lambda weight: weight > 0, "it must be positive")

    @property
    def regions_weight(self) -> float:
        return self.weight

    def write_pointers(
        self, sequence: RegionWriter, name: str, region: Region, tokens: list[int], learn: bool
    ) -> None:
        """The first in the order asked for, and the others row by row, as they follow at decoding."""
        sequence.add_pointers(name, region, [*tokens[:1], *sorted(tokens[1:])], learn, first_only=True)

    def steering(
        self, pointer_start: int, image_token_id: int, encode_text: EncodeText | None
    ) -> list[LogitsProcessor]:
        before = super().steering(pointer_start, image_token_id, encode_text)
        return [*before, Burst(pointer_start, self.threshold, self.max_copies)]


class Burst(LogitsProcessor):
    """After a pointer, lets the patches follow that were over the threshold where it was chosen; then text.

    It remembers these from one step to the next, row by row, so rows have to stay in their places.

    Args:
        pointer_start: id of the first pointer.
        threshold: probability over which a patch follows.
        most: pointers of a run at most.
    """

    def __init__(self, pointer_start: int, threshold: float, most: int | None = None) -> None:
        self.pointer_start, self.threshold, self.most = pointer_start, threshold, most
        self.chosen: Tensor | None = None
        """`[rows, pointers]`: patches over the threshold at the last step that was not within a run."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`[rows, classes]`: scores of the ids that may follow `input_ids` `[rows, tokens]`."""
        start, pointers = self.pointer_start, scores[:, self.pointer_start :]
        if not pointers.shape[1]:
            return scores
        run = last_run(input_ids, start)
        within = run[:, -1:] >= start
        self.chosen = chosen = self._choose(pointers, within)
        left = chosen & ~pointed_at(run, start, scores)[:, start:]
        if self.most is not None:
            left &= (run >= start).sum(1, keepdim=True) < self.most
        follows = torch.full_like(scores, -torch.inf)
        # Of equal values `argmax` returns any: those further on are smaller.
        row_by_row = left * torch.arange(left.shape[1], 0, -1, device=left.device)
        follows.scatter_(1, start + row_by_row.argmax(1, keepdim=True), 0.0)
        text = torch.cat([scores[:, :start], torch.full_like(pointers, -torch.inf)], 1)
        return torch.where(within, torch.where(left.any(1, keepdim=True), follows, text), scores)

    def _choose(self, pointers: Tensor, within: Tensor) -> Tensor:
        """Patches over the threshold `[rows, pointers]`, within a run `[rows, 1]` those of before."""
        chosen = pointers.sigmoid() > self.threshold
        if self.most is not None and self.most < pointers.shape[1]:
            chosen &= pointers >= pointers.topk(self.most, dim=1).values[:, -1:]
        before = torch.zeros_like(chosen) if self.chosen is None else self.chosen
        return torch.where(within, before, chosen)
