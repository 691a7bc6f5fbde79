"""The patches of a region, each learned by itself where the region's first pointer is predicted.

It stands beside the joint loss for strategies that choose all patches of a region at once. Source of the
multi-label loss: MINT-CoT, arXiv 2506.05331.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from v1lit.backbones.segments import send
from v1lit.labels import IGNORE, first_pointers
from v1lit.pointer.joint_loss import PointerLoss, Pointers, Reduction, or_one

REGIONS = "regions"
"""Name of this part of the loss."""


@dataclass(frozen=True)
class RegionTargets:
    """The regions of a batch that are learned, in order, and their patches; all of it on the host."""

    rows: Tensor
    """`[regions]`: which of the supervised positions predicts the region's first pointer."""
    owners: Tensor
    """`[regions]`: index of the sequence that each belongs to."""
    region: Tensor
    """`[patches]`: index of the region of every patch."""
    token: Tensor
    """`[patches]`: image token of the patch, counted through its sequence."""

    @classmethod
    def of(cls, input_ids: Tensor, labels: Tensor, sequence: Tensor, pointer_start: int) -> RegionTargets:
        """A region is learned if its first pointer is a label; its patches are its run of pointers.

        Args:
            input_ids: `[batch, tokens]`, on the host, as are the others.
            labels: `[batch, tokens]`, not shifted.
            sequence: `[batch, tokens]`: index of the sequence that each token belongs to.
            pointer_start: id of the first pointer.
        """
        goes_on = F.pad(sequence[:, 1:] == sequence[:, :-1], (1, 0))
        is_pointer = input_ids >= pointer_start
        begins = is_pointer & ~(F.pad(is_pointer[:, :-1], (1, 0)) & goes_on)
        run = begins.flatten().cumsum(0) - 1
        supervised = (labels != IGNORE) & goes_on
        first = first_pointers(labels, pointer_start)
        learned = (first & supervised).flatten()
        of_run = torch.full((int(begins.sum()) + 1,), -1)
        of_run[run[learned]] = torch.arange(int(learned.sum()))
        pointers = is_pointer.flatten().nonzero()[:, 0]
        region = of_run[run[pointers]]
        there = region >= 0
        tokens = input_ids.flatten()[pointers] - pointer_start
        rows = first[supervised].nonzero()[:, 0]
        return cls(rows, sequence.flatten()[learned], region[there], tokens[there])

    def part(self, some: slice) -> RegionTargets:
        """Those whose position is from `some.start` to `some.stop`, which becomes position 0."""
        kept = (self.rows >= some.start) & (self.rows < some.stop)
        index, theirs = kept.cumsum(0) - 1, kept[self.region]
        return RegionTargets(
            self.rows[kept] - some.start,
            self.owners[kept],
            index[self.region[theirs]],
            self.token[theirs],
        )


def region_losses(pointers: Pointers, gate: Tensor | None, targets: RegionTargets) -> Tensor:
    """`[regions]`: the mean over a sequence's image tokens of the binary cross-entropy of their scores.

    The scores are the pointer logits of the joint softmax: with a gate `[positions, 1]`, times it.
    """
    device = pointers.queries.device
    rows = send(targets.rows, device)
    queries = pointers.queries.index_select(0, rows)
    factor = None if gate is None else gate.index_select(0, rows)
    losses, wide = [], torch.promote_types(queries.dtype, torch.float32)
    first = 0
    counts = torch.bincount(targets.owners, minlength=len(pointers.image_tokens)).tolist()
    for count, keys in zip(counts, pointers.keys.split(pointers.image_tokens), strict=True):
        if not count:
            continue
        some = slice(first, first + count)
        scores = (queries[some] @ keys.T).to(wide) * pointers.scale
        scores = scores if factor is None else scores * factor[some]
        own = (targets.region >= first) & (targets.region < first + count)
        members = (targets.region[own] - first) * len(keys) + targets.token[own]
        wanted = torch.zeros_like(scores).flatten().index_fill_(0, send(members, device), 1.0)
        losses.append(
            F.binary_cross_entropy_with_logits(scores, wanted.view_as(scores), reduction="none").mean(1)
        )
        first += count
    return torch.cat([torch.zeros(0, dtype=wide, device=device), *losses])


def add_regions(
    terms: PointerLoss, each: Tensor, targets: RegionTargets, reduction: Reduction, normalizer: Tensor | None
) -> PointerLoss:
    """The joint loss with that of regions beside it.

    Args:
        terms: of the joint loss.
        each: `[regions]`: the losses of `targets`, times their weight.
        targets: the regions.
        reduction: as of the joint loss; with "none" a region's loss is added to that of its position.
        normalizer: `[]`: what "mean" divides the sum over regions by; no other has one.
    """
    total = each.sum()
    rows = send(targets.rows, each.device)
    if reduction == "none":
        loss = terms.loss.index_add(0, rows, each.to(terms.loss.dtype))
    else:
        loss = terms.loss + (total if normalizer is None else total / or_one(normalizer))
    none = each.new_zeros(len(terms.predictions))
    return replace(
        terms,
        loss=loss,
        values={**terms.values, REGIONS: none.index_add(0, rows, each.detach())},
        weights={**terms.weights, REGIONS: none.index_fill(0, rows, 1.0)},
    )


def split_normalizer(normalizer: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """What the joint loss, or both separate ones, are divided by, and what that of regions is.

    Raises ValueError for a normalizer that lacks the last.
    """
    shape = [2] if loss == "joint" else [3]
    if list(normalizer.shape) != shape:
        raise ValueError(
            f"the normalizer of a {loss} loss beside one of regions has shape {shape}, the number of regions "
            f"last; this has {list(normalizer.shape)}"
        )
    return normalizer[0] if loss == "joint" else normalizer[:2], normalizer[-1]
