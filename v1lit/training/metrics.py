"""How well a model points and what its loss is, over the supervised positions of many forward passes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from v1lit.labels import END, first_pointers
from v1lit.training.logged import LOSS_PARTS, pointing


class Means(Metric):
    """Means of several things over the positions of all batches and ranks.

    Args:
        things: how many.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, things: int) -> None:
        super().__init__()
        for name in ("sums", "counts"):
            self.add_state(name, torch.zeros(things, dtype=torch.float64), dist_reduce_fx="sum")


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
    """

    def __init__(self, pointer_start: int, ends: bool = False) -> None:
        names = pointing(ends)
        super().__init__(len(names))
        self.names = names
        self.pointer_start = pointer_start

    def update(self, targets: Tensor, predictions: Tensor) -> None:
        """Both `[positions]`, in row-major order; ids from `pointer_start` on are pointers."""
        is_pointer, right = targets >= self.pointer_start, targets == predictions
        first = first_pointers(targets, self.pointer_start)
        inside, iou = self._regions(targets, predictions, is_pointer, first)
        is_end = targets == END
        is_text = ~(is_pointer | is_end)
        sums = [(right & is_pointer).sum(), (right & first).sum(), inside, iou]
        sums += [(right & is_text).sum(), (right & is_end).sum()]
        runs = first.sum()
        counts = [is_pointer.sum(), runs, runs, runs, is_text.sum(), is_end.sum()]
        self.sums += torch.stack([value.double() for value in sums[: len(self.names)]])
        self.counts += torch.stack(counts[: len(self.names)])

    def _regions(
        self, targets: Tensor, predictions: Tensor, is_pointer: Tensor, first: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Runs whose first pointer lies in the true region, and the sum of the runs' overlaps."""
        runs = int(first.sum())
        if not runs:
            return first.sum(), first.sum()
        run = (first.cumsum(0) - 1)[is_pointer]
        true, predicted = targets[is_pointer], predictions[is_pointer]
        inside = torch.zeros(runs, dtype=torch.bool, device=run.device)
        inside[run[true == predictions[first][run]]] = True
        overlap = _overlap(run, true - self.pointer_start, predicted - self.pointer_start, runs)
        return inside.sum(), overlap

    def compute(self) -> dict[str, Tensor]:
        """The shares by name; nan where nothing was counted."""
        return dict(zip(self.names, self.sums / self.counts, strict=True))


class LossMeans(Means):
    """The parts of the loss as means over all positions of all batches and ranks, by name.

    Args:
        z_weight: by which the z part is multiplied.
    """

    def __init__(self, z_weight: float = 1.0) -> None:
        super().__init__(len(LOSS_PARTS))
        self.weights = {"z": z_weight}

    def update(self, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> None:
        """Weighted sums over positions and the sums of the weights, as in `PointerLoss`."""
        for name, value in sums.items():
            self.sums[LOSS_PARTS.index(name)] += value.detach()
            self.counts[LOSS_PARTS.index(name)] += counts[name]

    def compute(self) -> dict[str, Tensor]:
        """The means of the parts that had a position on any rank, so that all ranks give the same names."""
        means = (self.sums / self.counts).float()
        weighted = {name: self.weights.get(name, 1.0) * means[i] for i, name in enumerate(LOSS_PARTS)}
        return {name: weighted[name] for i, name in enumerate(LOSS_PARTS) if self.counts[i] > 0}


def _overlap(run: Tensor, true: Tensor, predicted: Tensor, runs: int) -> Tensor:
    """Sum over runs of the IoU of true and predicted patches; text counts as a patch outside."""
    width = int(torch.maximum(true, predicted).max()) + 2
    tables = torch.zeros(2, runs, width, dtype=torch.bool, device=run.device)
    tables[0, run, true + 1] = True
    tables[1, run, predicted.clamp(min=-1) + 1] = True
    both = (tables[0] & tables[1]).sum(dim=1)
    either = (tables[0] | tables[1]).sum(dim=1)
    return (both / either).sum()
