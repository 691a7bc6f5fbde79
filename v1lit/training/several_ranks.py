"""What a run on several ranks has more: checks before it, logs of all ranks, and eyes on who falls behind."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from v1lit.backbones.adapters.folder import base_config
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.weight_files import read_headers
from v1lit.cluster.checks import check_facts, ends_within, report, try_all_reduce
from v1lit.cluster.facts import Facts
from v1lit.cluster.meeting import Meeting, meet
from v1lit.cluster.rank_logs import rank_log
from v1lit.cluster.reach import reachable
from v1lit.cluster.shards import shard_digits, there_from_the_start
from v1lit.cluster.store import Place
from v1lit.data.datamodule import V1DataModule
from v1lit.training.checkpoints import FOLDER
from v1lit.training.config import RunConfig
from v1lit.training.lightning_internals import around_environment
from v1lit.training.watching import Watched


class Together(Callback):
    """Brings all ranks of a run together before its process group is made, and looks after them from then on.

    Args:
        run: options of the run.
        folder: of the run.
        recipe: resolved, by key, to be the same on all ranks; None without one.
    """

    def __init__(self, run: RunConfig, folder: Path, recipe: Mapping[str, str] | None = None) -> None:
        self.run, self.folder, self.recipe = run, folder, recipe
        self.meeting: Meeting | None = None
        self.left = ExitStack()
        """Open until the run ends."""

    @contextmanager
    def around(self, trainer: Trainer, module: Any, data: V1DataModule) -> Iterator[None]:
        """The checks, before and after the process group is made inside."""
        seconds = self.run.wait_for_ranks
        with reachable() as port:
            meeting = self.meeting = meet(place_of(trainer), seconds, rank_zero_info, port)
            digits = shard_digits(data) if there_from_the_start(data) else {}
            facts = Facts.of_this_process(self.recipe, digits, self.folder / FOLDER)
            found = check_facts(meeting, facts, parameters_of(module.backbone_config))
        report(meeting, found, rank_zero_info)
        about = f"one of {meeting.place.size} ranks"
        self.left.enter_context(rank_log(self.folder, meeting.place.rank, about))
        with ends_within(seconds, "making the process group", meeting):
            yield
        rank_zero_info(try_all_reduce(meeting, trainer.strategy.root_device, seconds).line)

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Compare the shards, now that every machine has its own, before weights are loaded."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # a connector sets it
        if stage != "fit" or self.meeting is None or there_from_the_start(data):
            return
        report(
            self.meeting,
            check_facts(self.meeting, Facts(shards=shard_digits(data)), key="shards"),
            rank_zero_info,
        )


@contextmanager
def together(
    trainer: Trainer, module: Any, data: V1DataModule, run: RunConfig, folder: Path,
    recipe: Mapping[str, str] | None = None,
) -> Iterator[None]:  # fmt: skip
    """Look after the ranks of a run while it trains inside; nothing where there is only one.

    Args:
        trainer: of the run, before `fit`.
        module: of the run.
        data: of the run.
        run: its options.
        folder: of the run.
        recipe: resolved, by key, to be the same on all ranks; None without one.
    """
    if trainer.world_size == 1:
        yield
        return
    all_ranks = Together(run, folder, recipe)
    watched = Watched(lambda: all_ranks.meeting, run.behind_after, run.lost_after, folder)
    trainer.callbacks += [all_ranks, watched]  # type: ignore[attr-defined]  # a connector sets it
    around_environment(trainer, lambda: all_ranks.around(trainer, module, data))
    with all_ranks.left:
        try:
            yield
        finally:
            watched.end()


def place_of(trainer: Trainer) -> Place:
    """Where this process stands among the ranks of a Trainer."""
    environment: Any = getattr(trainer.strategy, "cluster_environment", None)
    return Place(
        trainer.global_rank, trainer.world_size, environment.main_address, int(environment.main_port)
    )


def parameters_of(backbone: BackboneConfig) -> int | None:
    """Parameters of a checkpoint in a folder, from its headers; None for a tiny one, or one on the hub."""
    backbone = base_config(backbone)
    folder = Path(backbone.weights)
    if backbone.weights == "tiny" or not folder.is_dir():
        return None
    return sum(math.prod(tensor.shape) for tensor in read_headers(folder).values())
