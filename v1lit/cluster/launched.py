"""By what this process was started, as one of how many, and whether the recipe asks for as many."""

from __future__ import annotations

import os
from dataclasses import dataclass

from v1lit.cluster.store import Place
from v1lit.errors import OptionError


@dataclass(frozen=True)
class Launched:
    """What a launcher has told this process."""

    by: str
    """`torchrun`, `SLURM` or `the environment`."""
    rank: int
    size: int
    """Processes of the whole run."""
    local_rank: int = 0
    """Number of this process on its node."""
    per_node: int | None = None
    """Processes on each node; None where that is not said."""

    @property
    def nodes(self) -> int | None:
        return None if self.per_node is None else self.size // self.per_node


def launched() -> Launched | None:
    """What torchrun, SLURM or the variables of `env://` say; None for a process that is by itself."""
    told = os.environ
    if "TORCHELASTIC_RUN_ID" in told:
        local = int(told["LOCAL_WORLD_SIZE"])
        return Launched("torchrun", _int("RANK"), _int("WORLD_SIZE"), _int("LOCAL_RANK"), local)
    if "SLURM_PROCID" in told and told.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        per_node = told.get("SLURM_NTASKS_PER_NODE", "")
        nodes = told.get("SLURM_NNODES", "")
        size = _int("SLURM_NTASKS")
        each = int(per_node) if per_node.isdigit() else size // int(nodes) if nodes.isdigit() else None
        return Launched("SLURM", _int("SLURM_PROCID"), size, _int("SLURM_LOCALID"), each)
    if "RANK" in told and "WORLD_SIZE" in told:
        return Launched("the environment", _int("RANK"), _int("WORLD_SIZE"), _int("LOCAL_RANK"))
    return None


def _int(name: str) -> int:
    text = os.environ.get(name, "0")
    return int(text) if text.isdigit() else 0


def refuse_other_size(devices: int, num_nodes: int) -> None:
    """Refuse a recipe that asks for another number of processes than were started; raises OptionError.

    Lightning would do so in the middle of its start, or train in each process alone.

    Args:
        devices: processes on each node.
        num_nodes: of the run.
    """
    told = launched()
    if told is None or told.by == "the environment":
        return
    as_wanted = told.size == devices * num_nodes and told.per_node in (None, devices)
    if as_wanted:
        return
    each = "" if told.per_node is None else f", {told.per_node} on each node"
    options = (
        "--nproc-per-node={} --nnodes={}" if told.by == "torchrun" else "--ntasks-per-node={} --nodes={}"
    )
    fits = f"--trainer.devices={told.per_node} --trainer.num_nodes={told.nodes}, or " if told.per_node else ""
    raise OptionError(
        "devices", devices,
        f"with trainer.num_nodes={num_nodes} that makes {devices * num_nodes} processes, but {told.by} has "
        f"started {told.size}{each}\ngive {fits}{told.by} {options.format(devices, num_nodes)}", "trainer",
    )  # fmt: skip


def place_of_process(told: Launched) -> Place:
    """Where a process that was launched stands among the others, and where all meet."""
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    slurm = SLURMEnvironment() if told.by == "SLURM" else None
    address = slurm.main_address if slurm else os.environ.get("MASTER_ADDR", "127.0.0.1")
    port = slurm.main_port if slurm else _int("MASTER_PORT") or 29500
    return Place(told.rank, told.size, address, port)
