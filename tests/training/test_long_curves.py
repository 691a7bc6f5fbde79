"""Twenty steps over ranks are those of one: all families, packed, accumulated, ranks without an image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.curves import Curve, Setting, step_losses, train_on
from helpers.forked import needs_fork
from helpers.shard_cases import make, read_all

from v1lit.backbones.registry import list_backbones
from v1lit.data.config import EncodingConfig, PackingConfig
from v1lit.data.example import Message
from v1lit.data.shards.index import write_index
from v1lit.data.shards.writer import ShardWriter

pytestmark = [needs_fork, pytest.mark.slow]
LENGTH = 256
"""Tokens of a row: three scenes, or one of the texts."""
STEPS = 20


@pytest.fixture(scope="module")
def mixed(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 scenes, and as many texts that have a row for themselves."""
    folder = tmp_path_factory.mktemp("mixed")
    with ShardWriter(folder / "train") as writer:
        for path in sorted((scenes / "train").glob("*.tar")):
            for key, members in read_all(path):
                text = make(f"text-{key}", images=0)
                long = Message("user", "red circle " * 70)
                writer.write_members(key, members)
                writer.write(replace(text, messages=(long, *text.messages[1:])))
    write_index(folder / "train", writer.shards)
    return folder


@pytest.fixture(scope="module")
def alone() -> dict[str, list[Curve]]:
    """The run of a family on one rank, once it was made."""
    return {}


def left_to_soak(family: str, strategy: str) -> list[pytest.MarkDecorator]:
    """Every family under one strategy, and one family under every strategy, are tried each time."""
    return [] if strategy == "fsdp2" or family == "qwen2_5_vl" else [pytest.mark.soak]


@pytest.mark.parametrize(
    ("family", "strategy", "ranks", "nodes"),
    [
        pytest.param(family, *setting, marks=left_to_soak(family, setting[0]))
        for setting in (("fsdp2", 2, 1), ("ddp", 2, 1), ("hsdp", 4, 2), ("fsdp2_tp", 4, 2))
        for family in list_backbones()
    ],
)
def test_twenty_steps_over_ranks_are_those_of_one(
    family: str, strategy: str, ranks: int, nodes: int, mixed: Path, alone: dict[str, list[Curve]]
) -> None:
    readers = nodes if strategy == "fsdp2_tp" else ranks
    setting = Setting(
        mixed,
        family,
        STEPS,
        optimizer={"lr": 3e-4},
        data={
            "packing": PackingConfig(LENGTH),
            "encoding": EncodingConfig(max_tokens=LENGTH, coordinates=False),
            "batch_size": 1,
        },
    )
    one = alone[family] = alone.get(family) or train_on(setting, "auto", 1, accumulate=4)
    several = train_on(setting, strategy, ranks, nodes, accumulate=4 // readers)
    apart = several[:: ranks // readers]
    assert any(0 in images and any(images) for images in zip(*(curve.images for curve in apart), strict=True))
    assert step_losses(apart, 4 // readers, STEPS) == pytest.approx(step_losses(one, 4, STEPS), rel=1e-5)
    assert max(one[0].norms) > 0.5  # so that clipping is tried
    for curve in several:
        assert curve.norms == pytest.approx(one[0].norms, rel=1e-4)
