"""`v1lit doctor --cluster`: the checks that a run on several ranks makes before it begins, by themselves."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import yaml
from torch import distributed as dist

from v1lit.cli.errors import UserError
from v1lit.cli.recipe import compose
from v1lit.cluster.checks import check_facts, ends_within, report, try_all_reduce
from v1lit.cluster.facts import Facts
from v1lit.cluster.launched import Launched, launched, place_of_process, refuse_other_size
from v1lit.cluster.meeting import Meeting, meet
from v1lit.cluster.reach import reachable
from v1lit.cluster.shards import shard_digits


def check_cluster(recipe: str, changes: Sequence[str], seconds: float) -> int:
    """Check all ranks, as one of them, with what a recipe needs if one is named; returns the exit code.

    Raises UserError where nobody has started several processes, RanksMissing and RanksDiffer as a run.
    """
    told = launched()
    if told is None or told.size == 1:
        raise UserError(
            "--cluster is for several processes, and this one is alone\n"
            "start it on all ranks: torchrun --nproc-per-node=2 -m v1lit.cli.main doctor --cluster, or srun "
            "v1lit doctor --cluster"
        )
    begin = time.monotonic()
    facts, parameters = _facts(recipe, changes)
    with reachable() as port:
        meeting = meet(place_of_process(told), seconds, print, port)
        _say(meeting, f"{_who(meeting)}, together after {time.monotonic() - begin:.1f} s")
        found = check_facts(meeting, facts, parameters)
    report(meeting, found, print)
    compared = ", ".join(
        name for name, there in (("versions", True), ("recipe", recipe), ("shards", facts.shards)) if there
    )
    _say(meeting, f"the same on all ranks: {compared}")
    device = _device(told)
    with ends_within(seconds, "making the process group", meeting):
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{meeting.place.address}:{meeting.place.port}",
            rank=told.rank,
            world_size=told.size,
            timeout=timedelta(seconds=seconds),
        )
    try:
        _say(meeting, try_all_reduce(meeting, device, seconds).line)
    finally:
        dist.destroy_process_group()
    return 0


def _facts(recipe: str, changes: Sequence[str]) -> tuple[Facts, int | None]:
    """What this rank has to say, and how many parameters the recipe's model has."""
    if not recipe:
        return Facts.of_this_process(), None
    from v1lit.cli.recipe import flattened
    from v1lit.cli.recipe_cli import RecipeCLI
    from v1lit.training.several_ranks import parameters_of

    cli = RecipeCLI(compose(recipe, list(changes)))
    trainer = cli.config.as_dict()["trainer"]
    if isinstance(trainer["devices"], int):
        with cli.recipe.options():
            refuse_other_size(trainer["devices"], trainer["num_nodes"])
    module, data = cli.model_and_data()
    values: Mapping[str, str] = flattened(yaml.safe_load(cli.resolved()))
    digits = shard_digits(data) if data.has_train else {}
    folder = Path(cli.config["run"]["folder"])
    return Facts.of_this_process(values, digits, folder), parameters_of(module.backbone_config)


def _who(meeting: Meeting) -> str:
    machines = meeting.machines
    hosts = ", ".join(meeting.ranks[rank].host for rank in machines)
    return f"{meeting.place.size} ranks on {len(machines)} machine{'s' * (len(machines) > 1)} ({hosts})"


def _say(meeting: Meeting, line: str) -> None:
    if meeting.place.rank == 0:
        print(line, flush=True)


def _device(told: Launched) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", told.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
