"""Which ends of a run count as stopped by someone, and which stay failures."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from v1lit.cli.stopped import stoppable
from v1lit.training.stopping import RunStopped


def end(error: BaseException, received: int | None = None) -> None:
    """End what is done inside by this error, with or without a signal before it."""
    requests: Any = SimpleNamespace(received=received)
    with stoppable(requests, lambda: "after step 3"):
        raise error


def exit_after_ctrl_c() -> SystemExit:
    left = SystemExit(1)
    left.__context__ = KeyboardInterrupt()
    return left


@pytest.mark.parametrize("error", [KeyboardInterrupt(), exit_after_ctrl_c()])
def test_ctrl_c_stops_a_run_also_where_the_trainer_makes_an_exit_of_it(error: BaseException) -> None:
    with pytest.raises(RunStopped, match="after step 3") as caught:
        end(error)
    assert caught.value.exit_code == 130


def test_a_signal_that_was_received_decides_the_exit_code() -> None:
    with pytest.raises(RunStopped) as caught:
        end(KeyboardInterrupt(), signal.SIGTERM)
    assert caught.value.exit_code == 143


def test_processes_that_the_same_signal_has_ended_are_no_failure() -> None:
    lost = "DataLoader worker (pid 7) is killed by signal: Terminated."
    with pytest.raises(RunStopped, match="after step 3, with its other processes"):
        end(RuntimeError(lost), signal.SIGTERM)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        end(RuntimeError(lost))


@pytest.mark.parametrize("error", [SystemExit(3), RuntimeError("a mistake"), ValueError("another")])
def test_anything_else_stays_what_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        end(error, signal.SIGTERM)
    assert caught.value is error


def test_a_run_that_knows_where_it_was_stopped_says_so_itself() -> None:
    with pytest.raises(RunStopped, match="in a validation"):
        end(RunStopped(signal.SIGINT, "in a validation"))
