"""How well a model points and what its loss is, over the supervised positions of many forward passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from v1lit.labels import END, first_pointers
from v1lit.training.logged import LOSS, LOSS_PARTS, loss_part, pointing


class Means(Metric):
    """Means of several things over the positions of all batches and ranks: of all, and of every source.

    All ranks have the same sums whatever sources their batches are of, so none waits for another in vain.

    Args:
        names: of the things.
        sources: names of the sources that positions are from; without any, all are from one.
    """

    full_state_update = False
    sums: Tensor
    """`[sources, things]`"""
    counts: Tensor
    """`[sources, things]`"""

    def __init__(self, names: Sequence[str], sources: Sequence[str] = ()) -> None:
        super().__init__()
        self.names, self.sources = list(names), list(sources)
        shape = (max(1, len(self.sources)), len(self.names))
        for name in ("sums", "counts"):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, values: Tensor, weights: Tensor, owners: Tensor | None) -> None:
        """Values and weights `[things, positions]`, and the source of each position `[positions]`."""
        for state, own in ((self.sums, values.double()), (self.counts, weights.double())):
            if owners is None:
                state[0] += own.sum(1)
            else:
                state.index_add_(0, owners, own.T)

    def _of_sources(self) -> dict[str, Tensor]:
        """The means of every source that has a position on any rank, as `NAME/SOURCE`."""
        if not self.sources:
            return {}
        means, counted = self.sums / self.counts, (self.counts > 0).tolist()
        return {
            f"{name}/{source}": means[row, column]
            for column, name in enumerate(self.names)
            for row, source in enumerate(self.sources)
            if counted[row][column]
        }


class PointingMetrics(Means):
    """Accuracies of pointers and text, and the overlap of pointed and true patches; given the true prefix.

    A run is a stretch of consecutive pointers: the patches of one region. A prediction counts over all
    classes, so a text token predicted in place of a pointer is wrong.

    Source of the two accuracies over all positions: jun297/v1, train.py, `mean_copy_accuracy` and
    `mean_gen_accuracy` in `LoggerTrainer.compute_loss`.

    - `pointer_accuracy`: share of pointers that are exactly the true one
    - `pointer_first_accuracy`: the same for the first pointer of every run
    - `pointer_first_in_region`: share of runs whose first pointer lies anywhere in the true region
    - `region_iou`: mean over runs of |pointed and true| / |pointed or true|, predicted along the true run
    - `text_accuracy`: share of text tokens that are exactly the true one
    - `end_accuracy`: share of ends of runs that are predicted, where they are a choice of pointers; they are
      neither pointers nor text for the others

    Args:
        pointer_start: id of the first pointer.
        ends: whether the end of a run is a choice of pointers, `END`.
        sources: names of the sources that positions are from, if several.
    """

    def __init__(self, pointer_start: int, ends: bool = False, sources: Sequence[str] = ()) -> None:
        super().__init__(pointing(ends), sources)
        self.pointer_start = pointer_start

    def update(self, targets: Tensor, predictions: Tensor, owners: Tensor | None = None) -> None:
        """Count, of positions in row-major order.

        Args:
            targets: `[positions]`; ids from `pointer_start` on are pointers.
            predictions: `[positions]`.
            owners: `[positions]`: index of the source of each, where there are several.
        """
        is_pointer, right = targets >= self.pointer_start, targets == predictions
        first = first_pointers(targets, self.pointer_start)
        inside, iou = self._regions(targets, predictions, is_pointer, first)
        is_end = targets == END
        is_text = ~(is_pointer | is_end)
        sums = [right & is_pointer, right & first, inside, iou, right & is_text, right & is_end]
        counts = [is_pointer, first, first, first, is_text, is_end]
        values, weights = ([row.double() for row in rows[: len(self.names)]] for rows in (sums, counts))
        self._add(torch.stack(values), torch.stack(weights), owners)

    def _regions(
        self, targets: Tensor, predictions: Tensor, is_pointer: Tensor, first: Tensor
    ) -> tuple[Tensor, Tensor]:
        """At the first pointer of every run, whether it lies in the true region, and the run's overlap.

        `[positions]`, zeros elsewhere.
        """
        runs = int(first.sum())
        if not runs:
            return first, first
        run = (first.cumsum(0) - 1)[is_pointer]
        true, predicted = targets[is_pointer], predictions[is_pointer]
        inside = torch.zeros(runs, dtype=torch.bool, device=run.device)
        inside[run[true == predictions[first][run]]] = True
        overlap = _overlap(run, true - self.pointer_start, predicted - self.pointer_start, runs)
        nowhere = torch.zeros(len(targets), dtype=overlap.dtype, device=run.device)
        return first.masked_scatter(first, inside), nowhere.masked_scatter(first, overlap)

    def compute(self) -> dict[str, Tensor]:
        """The shares by name, nan where nothing was counted; those of sources as `NAME/SOURCE`."""
        whole = self.sums.sum(0) / self.counts.sum(0)
        return dict(zip(self.names, whole, strict=True)) | self._of_sources()


class LossMeans(Means):
    """The loss and its parts as means over all positions of all batches and ranks, by the names of logs.

    Args:
        z_weight: by which the z part is multiplied.
        sources: names of the sources that positions are from, if several.
    """

    def __init__(self, z_weight: float = 1.0, sources: Sequence[str] = ()) -> None:
        super().__init__([loss_part("", part) for part in LOSS_PARTS], sources)
        self.factors = {loss_part("", "z"): z_weight}

    def update(
        self, values: Mapping[str, Tensor], weights: Mapping[str, Tensor], owners: Tensor | None = None
    ) -> None:
        """Weighted losses and weights of positions, as of `PointerLoss`; owners as of `PointingMetrics`."""
        if not values:
            return
        nothing = torch.zeros_like(next(iter(values.values())))
        summed, weighed = (
            torch.stack([of.get(part, nothing) for part in LOSS_PARTS]) for of in (values, weights)
        )
        self._add(summed, weighed, owners)

    def compute(self) -> dict[str, Tensor]:
        """`loss_PART` of the parts that had a position on any rank, so that all ranks give the same names.

        `loss` is their sum; those of sources are `loss_PART/SOURCE` and `loss/SOURCE`.
        """
        sums, counts = self.sums.sum(0), self.counts.sum(0)
        whole = {name: sums[i] / counts[i] for i, name in enumerate(self.names) if counts[i] > 0}
        means = {
            name: self.factors.get(name.partition("/")[0], 1.0) * mean.float()
            for name, mean in (whole | self._of_sources()).items()
        }
        totals: dict[str, Tensor] = {}
        for name, mean in means.items():
            _, slash, source = name.partition("/")
            total = LOSS + slash + source
            totals[total] = totals[total] + mean if total in totals else mean
        return totals | means


def _overlap(run: Tensor, true: Tensor, predicted: Tensor, runs: int) -> Tensor:
    """`[runs]`: the IoU of true and predicted patches; text counts as a patch outside."""
    width = int(torch.maximum(true, predicted).max()) + 2
    tables = torch.zeros(2, runs, width, dtype=torch.bool, device=run.device)
    tables[0, run, true + 1] = True
    tables[1, run, predicted.clamp(min=-1) + 1] = True
    both = (tables[0] & tables[1]).sum(dim=1)
    either = (tables[0] | tables[1]).sum(dim=1)
    return both / either
