"""The agent of a node: what it makes of signals and of exit codes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.launched_runs import environment

from v1lit.launch.local import free_port
from v1lit.launch.node import Node, own_address

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]
RUNS = """
import sys
from v1lit.launch.node import Node, run_node
node = Node({least}, {most}, {procs}, "127.0.0.1", {port}, {number}, "here", {restarts}, {join})
noted = lambda rank, reason: print(f"noted: {{reason}}", flush=True)
sys.exit(run_node(node, [sys.executable, "rank.py", "cost: $5 ${{local_rank}}"], noted))
"""
RANK = """
import os, signal, sys, time
from pathlib import Path
rank, count = os.environ["RANK"], len(list(Path().glob(f"start-{os.environ['RANK']}-*")))
Path(f"start-{rank}-{count}").write_text("\\n".join(sys.argv[1:]))
"""


def run(folder: Path, rank: str, **options: Any) -> subprocess.Popen[str]:
    """A node on whose every rank `rank` runs, with `rank` and `count`, the starts before this one."""
    given = {"least": 1, "most": 1, "procs": 2, "number": 0, "restarts": 3, "join": 60, "port": free_port()}
    (folder / "rank.py").write_text(RANK + rank)
    return subprocess.Popen(
        [sys.executable, "-c", RUNS.format(**{**given, **options})],
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def starts(folder: Path) -> int:
    """How often rank 0 was started."""
    return len(list(folder.glob("start-0-*")))


def test_ranks_get_their_words_unchanged_and_the_number_of_nodes(tmp_path: Path) -> None:
    process = run(tmp_path, "")
    assert process.wait() == 0
    assert (tmp_path / "start-1-0").read_text().splitlines() == [
        "cost: $5 ${local_rank}",
        "--trainer.num_nodes=1",
    ]


def test_ranks_are_started_again_when_one_is_killed_and_that_is_noted(tmp_path: Path) -> None:
    dies = "if rank == '1' and not count: os.kill(os.getpid(), signal.SIGKILL)\n"
    process = run(tmp_path, f"{dies}time.sleep(20 if not count else 0)")
    said, errors = process.communicate()
    assert (process.returncode, starts(tmp_path)) == (0, 2), errors
    assert said == "noted: rank 1 was ended by SIGKILL, as the system does when memory is used up\n"
    assert "node 0: rank 1 ended with SIGKILL; start 2 follows" in errors


@pytest.mark.parametrize("code", [2, 3, 130, 143])
def test_ranks_are_not_started_again_when_that_is_of_no_use(code: int, tmp_path: Path) -> None:
    process = run(tmp_path, f"sys.exit({code})")
    process.communicate()
    assert (process.returncode, starts(tmp_path)) == (code, 1)


def test_as_many_restarts_as_are_allowed_are_made(tmp_path: Path) -> None:
    process = run(tmp_path, "sys.exit(1)", restarts=1)
    _, errors = process.communicate()
    assert (process.returncode, starts(tmp_path)) == (1, 2)
    assert "--max-restarts=1 allows no more" in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_handed_to_the_ranks_which_may_take_their_time(
    number: signal.Signals, tmp_path: Path
) -> None:
    waits = (
        "def stop(number, frame):\n"
        "    time.sleep(1); Path(f'stopped-{rank}').write_text(str(number)); sys.exit(143)\n"
        "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1): signal.signal(number, stop)\n"
        "Path(f'ready-{rank}').touch(); time.sleep(60)"
    )
    process = run(tmp_path, waits)
    while len(list(tmp_path.glob("ready-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert starts(tmp_path) == 1
    assert [(tmp_path / f"stopped-{rank}").read_text() for rank in (0, 1)] == [str(int(number))] * 2


def test_a_signal_while_nodes_are_missing_ends_the_wait(tmp_path: Path) -> None:
    port = free_port()
    process = run(tmp_path, "", least=2, most=2, join=100, port=port)
    while not listens(port):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert (process.returncode, starts(tmp_path)) == (143, 0)


def test_nodes_that_do_not_come_are_named_with_the_place_and_the_time(tmp_path: Path) -> None:
    process = run(tmp_path, "", least=2, most=2, join=1)
    _, errors = process.communicate()
    (error,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert process.returncode == 1
    assert error.startswith("error: node 0, ")
    assert ": 2 nodes did not all come to 127.0.0.1:" in error
    assert error.endswith(" within 1 s; --join-timeout waits longer")


def test_a_first_node_that_is_not_there_is_named(tmp_path: Path) -> None:
    process = run(tmp_path, "", least=2, most=2, number=1, join=1)
    _, errors = process.communicate()
    (error,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert process.returncode == 1
    assert ": nothing answers at 127.0.0.1:" in error


def test_the_first_node_is_known_by_the_name_that_the_others_use() -> None:
    first = Node(2, 2, 1, "first.cluster", 29500, 0, "here", 0)
    assert own_address(first) == "first.cluster"
    assert own_address(replace(first, host="127.0.0.1", number=1)) == "127.0.0.1"
