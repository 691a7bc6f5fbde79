"""`Measures`: what is logged of losses and predictions, for the whole and for every source of a mixture.

A batch is first noted as it is, which waits for no device; counting what was noted does, and only where
measures are computed do ranks talk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from v1lit.backbones.segments import send
from v1lit.data.encode.batch import Batch
from v1lit.pointer.output import PointAndCopyOutput
from v1lit.training.metrics import LossMeans, PointingMetrics


@dataclass(frozen=True)
class Noted:
    """What is measured of one batch, on its device, without the graph of its loss."""

    targets: Tensor
    """`[positions]`"""
    predictions: Tensor
    """`[positions]`"""
    values: Mapping[str, Tensor]
    """As of `PointerLoss`; empty where losses are not measured."""
    weights: Mapping[str, Tensor]
    owners: Tensor | None
    """`[positions]`: index of the source of each; None where there is one source."""


class Measures(nn.Module):
    """Losses and pointing over many batches.

    Args:
        pointer_start: id of the first pointer.
        ends: whether the end of a run is a choice of pointers.
        z_weight: of the loss.
        sources: names of the sources of the data, if several.
        losses: whether losses are measured as well.
    """

    def __init__(
        self, pointer_start: int, ends: bool, z_weight: float, sources: Sequence[str], losses: bool
    ) -> None:
        super().__init__()
        self.pointing = PointingMetrics(pointer_start, ends, sources)
        self.losses = LossMeans(z_weight, sources) if losses else None
        self.has_sources = bool(sources)
        self.noted: list[Noted] = []

    def note(self, out: PointAndCopyOutput, batch: Batch) -> None:
        """Keep what is measured of a batch, to be counted later."""
        assert out.targets is not None
        assert out.terms is not None
        losses = (out.terms.values, out.terms.weights) if self.losses is not None else ({}, {})
        owners = self._owners(out, batch) if self.has_sources else None
        self.noted.append(Noted(out.targets, out.terms.predictions, *losses, owners))

    def count(self) -> None:
        """Count what was noted; waits for the device."""
        for noted in self.noted:
            self.pointing.update(noted.targets, noted.predictions, noted.owners)
            if self.losses is not None:
                self.losses.update(noted.values, noted.weights, noted.owners)
        self.noted.clear()

    def compute(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and how well the model points, over all ranks, as `LossMeans` and `PointingMetrics` do."""
        return {} if self.losses is None else self.losses.compute(), self.pointing.compute()

    def reset(self) -> None:
        """Forget what was counted."""
        self.pointing.reset()
        if self.losses is not None:
            self.losses.reset()

    @staticmethod
    def _owners(out: PointAndCopyOutput, batch: Batch) -> Tensor:
        """The source of each supervised position, counted on the host; a blank batch has none."""
        assert out.positions is not None
        assert out.targets is not None
        counts = torch.tensor(out.positions[: len(batch.sources)], dtype=torch.long)
        sources = torch.tensor(batch.sources, dtype=torch.long)
        return send(sources.repeat_interleave(counts), out.targets.device)
