"""Nodes on this machine: when one fails, when someone stops them, and when their launcher is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.launched_runs import environment

from v1lit.launch.local import run_local

pytestmark = [pytest.mark.timeout(60), pytest.mark.skipif(os.name != "posix", reason="only Linux")]
WAITS = """
import signal, sys, time
from pathlib import Path
from v1lit.processes import end_with_launcher
def stop(number, frame):
    Path(sys.argv[1] + ".stopped").write_text(signal.Signals(number).name)
    sys.exit({code})
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, stop)
end_with_launcher()
Path(sys.argv[1] + ".ready").touch()
time.sleep(50)
"""
LAUNCHES = """
import sys
from v1lit.launch.local import run_local
sys.exit(run_local(2, 2, lambda number: [sys.executable, "waits.py", f"node-{number}"]))
"""


def fail(*codes: int) -> list[list[str]]:
    """Commands that end with these exit codes."""
    return [[sys.executable, "-c", f"import sys; sys.exit({code})"] for code in codes]


def ready(folder: Path) -> bool:
    return all((folder / f"node-{number}.ready").exists() for number in (0, 1))


def await_(condition: object) -> None:
    while not condition():  # type: ignore[operator]  # the test's own time limit ends it
        time.sleep(0.05)


def launched(folder: Path, code: int = 143) -> subprocess.Popen[bytes]:
    """A launcher with two nodes that wait for a signal."""
    (folder / "waits.py").write_text(WAITS.format(code=code))
    (folder / "launches.py").write_text(LAUNCHES)
    process = subprocess.Popen([sys.executable, "launches.py"], cwd=folder, env=environment())
    await_(lambda: ready(folder))
    return process


def test_the_exit_code_is_that_of_a_node_that_failed() -> None:
    commands = fail(0, 7)
    assert run_local(2, 2, lambda number: commands[number]) == 7
    assert run_local(1, 2, lambda number: commands[number]) == 0, "one node is enough"
    assert run_local(2, 2, lambda number: fail(0, 0)[number]) == 0


def test_a_node_without_which_the_others_cannot_run_ends_them(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(WAITS.format(code=0))
    waits = [sys.executable, str(tmp_path / "waits.py"), str(tmp_path / "node-0")]
    until_ready = (
        "import sys, time; from pathlib import Path\n"
        f"while not Path({str(tmp_path / 'node-0.ready')!r}).exists(): time.sleep(0.05)\n"
        "sys.exit(9)"
    )
    commands = [waits, [sys.executable, "-c", until_ready]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        assert run_local(2, 2, lambda number: commands[number]) == 9
    assert (tmp_path / "node-0.stopped").read_text() == "SIGTERM"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_handed_to_all_nodes_which_are_waited_for(number: signal.Signals, tmp_path: Path) -> None:
    process = launched(tmp_path)
    process.send_signal(number)
    assert process.wait() == 143
    for node in (0, 1):
        assert (tmp_path / f"node-{node}.stopped").read_text() == number.name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux")
def test_nodes_end_when_their_launcher_is_killed(tmp_path: Path) -> None:
    process = launched(tmp_path)
    process.kill()
    process.wait()
    await_(lambda: all((tmp_path / f"node-{node}.stopped").exists() for node in (0, 1)))
    assert (tmp_path / "node-0.stopped").read_text() == "SIGTERM"
