"""Checkpoints of the hub, fetched once per node."""

from __future__ import annotations

import torch.distributed as dist

from v1lit.backbones.hub import hub_errors, local_folder
from v1lit.backbones.weight_files import WeightsUnavailable


def fetch_weights(weights: str, local_rank: int) -> None:
    """Have the first process of each node fetch a hub id into its cache, while the others wait.

    There is nothing to do for a folder and for `tiny`. Raises WeightsUnavailable on all ranks if one node
    cannot get them.

    Args:
        weights: as in `BackboneConfig`.
        local_rank: number of this process on its node.
    """
    reason = None
    if weights != "tiny" and local_rank == 0:
        try:
            with hub_errors(weights):
                local_folder(weights)
        except WeightsUnavailable as error:
            reason = str(error)
    reasons = [reason]
    if dist.is_available() and dist.is_initialized():
        reasons = [None] * dist.get_world_size()
        dist.all_gather_object(reasons, reason)
    if (first := next(filter(None, reasons), None)) is not None:
        raise WeightsUnavailable(first)
