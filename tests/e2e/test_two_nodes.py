"""Two nodes: a cut cable ends both, fewer ranks resume, and all is as on one rank.

In `make soak` with two ranks each, also begun again as one each, and with every strategy and family.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers.two_nodes import Cable, cable, run_here, start_nodes, steps_of, v1lit, write_run
from PIL import Image, ImageDraw

import v1lit as library
from v1lit.training.attempts import attempts

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc"),
    pytest.mark.timeout(600),
    pytest.mark.slow,
]
STEP = 4
"""Examples."""
PATIENT = "--run.lost_after=300"
"""Nothing is cut any more: a rank that is late, on a machine that does much besides, is not lost."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def cables() -> Iterator[Cable]:
    with cable() as found:
        yield found


@pytest.fixture
def joined(cables: Cable) -> Cable:
    """Also after a test that has failed while it was cut."""
    cables.mend()
    return cables


def steps(until: int, readers: int) -> list[str]:
    """Changes for a run up to a step that reads with N ranks."""
    return [f"--trainer.max_steps={until}", f"--trainer.accumulate_grad_batches={STEP // readers}"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Callable[[str], Path]:
    """The folder of the same run of a family in one process, exported; made once."""
    return cache(lambda family: run_alone(tmp_path_factory.mktemp("alone"), data, family))


def run_alone(folder: Path, data: Path, family: str) -> Path:
    write_run(folder, data, "auto", family=family)
    done = run_here(folder, *steps(8, 1))
    assert done.returncode == 0, done.stderr
    exported = v1lit(folder, "export", "runs/it", "exported")
    assert exported.returncode == 0, exported.stderr
    return folder


@pytest.mark.parametrize(
    ("strategy", "family", "procs"),
    [
        ("fsdp2", "qwen2_5_vl", 1),
        *(
            pytest.param(strategy, "qwen2_5_vl", 2, marks=pytest.mark.soak)
            for strategy in ("fsdp2", "ddp", "hsdp", "fsdp2_tp")
        ),
        *(
            pytest.param("fsdp2", name, 2, marks=pytest.mark.soak)
            for name in ("qwen2_vl", "qwen3_vl", "qwen3_5", "llava", "internvl")
        ),
    ],
)
def test_a_cut_cable_ends_both_nodes_and_fewer_ranks_go_the_way_of_one(
    strategy: str,
    family: str,
    procs: int,
    alone: Callable[[str], Path],
    joined: Cable,
    data: Path,
    tmp_path: Path,
) -> None:
    folder = write_run(tmp_path / "it", data, strategy, 3, family)
    readers = 2 if strategy == "fsdp2_tp" else 2 * procs

    first, second = start_nodes(folder, joined, procs, *steps(4, readers))
    while len(list(folder.glob("here-*"))) < 2 * procs:
        assert (first.poll(), second.poll()) == (None, None), output(folder)
        time.sleep(0.05)
    if joined.names:
        joined.cut()
    else:
        second.kill()
    (folder / "go").touch()
    while "start 2 follows" not in output(folder)[0]:
        assert first.poll() is None, output(folder)
        time.sleep(0.05)
    first.terminate()  # it would wait for the other node for --join-timeout seconds, and say so
    assert first.wait(timeout=200) == 143, output(folder)
    assert second.wait(timeout=200) != 0, output(folder)
    joined.mend()
    if joined.names:
        told, other = output(folder)
        lost = "rank 1" if procs == 1 else "ranks 2-3"
        assert f"error: no sign of life from {lost} (" in told
        assert re.search(r"error: rank 0 \(.*\) is lost, or the way to it: nothing has answered at", other)
        assert "error: node 1, " in other
        assert "the ranks have ended, and nothing has answered at" in other
    (start,) = attempts(folder / "runs/it")
    assert start.failed

    again = ((2, 4), (1, 6)) if procs == 2 else ()
    for fewer, until in again:
        on = 2 * fewer if strategy != "fsdp2_tp" else 2
        nodes = start_nodes(folder, joined, fewer, *steps(until, on), PATIENT)
        assert [node.wait(timeout=280) for node in nodes] == [0, 0], output(folder)
    done = run_here(folder, *steps(8, 1), "--run.resume=auto", "--run.name=it")
    assert done.returncode == 0, done.stderr
    assert [one.step for one in attempts(folder / "runs/it")] == [0, 2, 4][: 1 + len(again)]

    expected, found = steps_of(alone(family)), steps_of(folder)
    assert found.keys() == expected.keys() == set(range(8))
    for step, (loss, examples) in expected.items():
        assert found[step][1] == examples, f"step {step} has other examples"
        assert found[step][0] == pytest.approx(loss, rel=1e-5), f"step {step}"

    exported = v1lit(folder, "export", "runs/it", "exported")
    assert exported.returncode == 0, exported.stderr
    assert said(folder / "exported") == said(alone(family) / "exported")


def output(folder: Path) -> list[str]:
    """What the nodes have printed."""
    return [(folder / f"node-{number}.txt").read_text() for number in range(2)]


def said(exported: Path) -> str:
    """What a model generates for a picture of a red circle."""
    picture = Image.new("RGB", (112, 112), "white")
    ImageDraw.Draw(picture).ellipse((20, 20, 70, 70), "red")
    return library.load(exported)(picture, "Where is the red circle?").text
