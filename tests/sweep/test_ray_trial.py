"""What a task of Ray does on its node, and what becomes of what Ray says; without a cluster."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.sweeps import until

from v1lit.sweep.executor import ExecutorError, Job
from v1lit.sweep.folder import SweepFolder
from v1lit.sweep.ray_tasks import RayTask, RayTasks
from v1lit.sweep.ray_trial import run_trial


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """A sweep's folder, driven by a process of its own as far as its lock can tell."""
    return SweepFolder(tmp_path / "it")


@pytest.fixture
def place(folder: SweepFolder, monkeypatch: Any) -> Iterator[Path]:
    monkeypatch.chdir(folder.path.parent)
    with folder.driven():
        yield folder.path


def run(place: Path, script: str, here: Path | None = None, python: str = sys.executable) -> int | str:
    return run_trial(str(here or place.parent), str(place), "a", [python, "-c", script], threads=3)


def test_a_trial_runs_where_its_driver_was_started_with_its_threads(place: Path) -> None:
    script = "import os; print(os.getcwd(), os.environ['OMP_NUM_THREADS'], os.environ['SLURM_JOB_NAME'])"
    assert run(place, f"{script}; raise SystemExit(7)") == 7
    said = (place / "output/a.txt").read_text()
    assert said.split() == [str(place.parent), "3", "interactive"]


def test_a_node_says_what_it_lacks(folder: SweepFolder, tmp_path: Path) -> None:
    place = folder.path
    assert run(place, "") == f"does not see the sweep's folder {place}"
    with folder.driven():
        assert run(place, "", here=tmp_path / "no") == (
            f"does not see {tmp_path / 'no'}, where the sweep was started"
        )
        assert run(place, "", python="/no/python") == "has no /no/python, with which the sweep was started"
    assert run(place, "") == f"sees no locks of other nodes in {place}"


def test_a_trial_waits_until_an_earlier_start_of_it_has_ended(place: Path, folder: SweepFolder) -> None:
    lock = folder.take("a")
    assert lock is not None
    order = place / "order"
    timer = threading.Timer(1, lambda: (order.write_text("old "), os.close(lock)))
    timer.start()
    assert run(place, f"open({str(order)!r}, 'a').write('new')") == 0
    assert order.read_text() == "old new"


def test_a_task_that_is_cancelled_while_it_waits_ends(place: Path, folder: SweepFolder) -> None:
    lock = folder.take("a")
    assert lock is not None
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    assert run(place, "print('runs')") == 143
    os.close(lock)
    assert not (place / "output/a.txt").exists()


def test_the_first_interrupt_asks_a_trial_to_stop_and_the_second_kills_it(place: Path) -> None:
    ready, told = place / "ready", place / "told"
    script = (
        f"import signal, time\nfrom pathlib import Path\n"
        f"signal.signal(signal.SIGTERM, lambda *_: Path({str(told)!r}).touch())\n"
        f"Path({str(ready)!r}).touch()\nwhile True:\n    time.sleep(0.02)"
    )

    def interrupt() -> None:
        for path in (ready, told):
            until(path.exists, "the trial gets there")
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt).start()
    assert run(place, script) == 137
    assert signal.getsignal(signal.SIGINT) is before


class RayError(Exception):
    """The root of Ray's errors."""


class RayTaskError(RayError):
    """What a task raised."""


class TaskCancelledError(RayError):
    """A task was cancelled."""


def a_task(monkeypatch: Any, place: Path, result: object) -> RayTask:
    """A task that has ended with a result, or with what Ray raises in its place."""

    def get(reference: object) -> object:
        if isinstance(result, Exception):
            raise result
        return result

    kinds = SimpleNamespace(
        RayError=RayError, RayTaskError=RayTaskError, TaskCancelledError=TaskCancelledError
    )
    ray = SimpleNamespace(exceptions=kinds, get=get, wait=lambda them, timeout: (them, []))
    monkeypatch.setitem(sys.modules, "ray", ray)
    job = Job("a", ("python",), {}, place / "output/a.txt", -1)
    return RayTask(RayTasks(place, "auto", 1, 1, 0, 1, 1), job, "reference", None)


def test_a_lost_trial_has_failed_and_its_output_says_why(place: Path, monkeypatch: Any) -> None:
    (place / "output/a.txt").write_text("step 3\n")
    assert a_task(monkeypatch, place, RayError("the node\nis dead")).poll() == 137
    assert (place / "output/a.txt").read_text() == "step 3\nerror: lost by Ray: the node is dead\n"
    assert a_task(monkeypatch, place, TaskCancelledError()).poll() == 143


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("does not see /data/it", "a node of the Ray cluster does not see /data/it\nfolder and Python"),
        (RayTaskError("Traceback:\nModuleNotFoundError: No module named 'v1lit'\n"),
         "a node of the Ray cluster cannot run trials: ModuleNotFoundError: No module named 'v1lit'\n"),
    ],
)  # fmt: skip
def test_what_would_fail_any_trial_ends_the_driver(
    place: Path, monkeypatch: Any, result: object, said: str
) -> None:
    with pytest.raises(ExecutorError) as told:
        a_task(monkeypatch, place, result).poll()
    assert str(told.value).startswith(said)


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExecutorError, match=r'pip install "v1lit\[ray\]"'):
        RayTasks(tmp_path, "auto", 1, 1, 0, 1, 1).connect()


@pytest.mark.parametrize("gpus", [0, 0.5, 1, 2])
def test_several_gpus_are_held_by_a_group_and_all_else_is_asked_of_the_task(
    place: Path, monkeypatch: Any, gpus: float
) -> None:
    asked: dict[str, Any] = {}
    groups: list[object] = []

    def grouped(bundles: list[object], strategy: str, name: str) -> str:
        groups.append((bundles, strategy, name))
        return "the group"

    def options(**given: Any) -> Any:
        asked.update(given)
        return SimpleNamespace(remote=lambda *words: "reference")

    util = SimpleNamespace(placement_group=grouped, remove_placement_group=groups.remove)
    ray = SimpleNamespace(util=util, remote=lambda function: SimpleNamespace(options=options))
    strategies = SimpleNamespace(PlacementGroupSchedulingStrategy=lambda group: ("in", group))
    for name, module in {"ray": ray, "ray.util": util, "ray.util.scheduling_strategies": strategies}.items():
        monkeypatch.setitem(sys.modules, name, module)
    cluster = RayTasks(place, "auto", 1, 3, gpus, 1, 1)
    cluster.start(Job("a", ("python",), {}, place / "output/a.txt", -1))
    assert not cluster.has_room()
    assert (asked["num_cpus"], asked["num_gpus"], asked["max_retries"]) == (3, gpus, 0)
    assert groups == ([([{"CPU": 3, "GPU": 2}], "STRICT_PACK", "a")] if gpus > 1 else [])
    assert asked.get("scheduling_strategy") == (("in", "the group") if gpus > 1 else None)


@pytest.mark.parametrize(
    ("there", "given", "mode"),
    [(False, None, None), (True, None, "token"), (True, "disabled", "disabled")],
)
def test_a_token_that_is_there_is_shown(
    tmp_path: Path, monkeypatch: Any, there: bool, given: str | None, mode: str | None
) -> None:
    """As a cluster that is started where it is asks for it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    if given is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", given)
    if there:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray/auth_token").write_text("0123")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExecutorError):
        RayTasks(tmp_path, "auto", 1, 1, 0, 1, 1).connect()
    assert os.environ.get("RAY_AUTH_MODE") == mode
