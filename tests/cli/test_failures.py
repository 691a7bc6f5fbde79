"""What exceptions are told as: a mistake, a failure of machine or own code, or a bug."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from safetensors import SafetensorError

from v1lit.backbones.weight_files import WeightsUnavailable
from v1lit.cli.errors import LONGEST, RunFailed, UserError, guard, two_lines
from v1lit.cli.failures import Told, explain
from v1lit.data.errors import ShardError
from v1lit.data.remote.error import RemoteError
from v1lit.errors import FAILURE, MISTAKE, OptionError
from v1lit.training.module import NonFiniteLossError


def told(error: BaseException) -> Told:
    found = explain(error)
    assert found is not None, f"{error!r} is taken for a bug"
    return found


OF_MACHINES = {
    "full disk": (OSError(errno.ENOSPC, "No space left on device"), ["disk is full", "--run.folder"]),
    "full disk, with the file": (
        OSError(errno.ENOSPC, "No space left on device", "runs/a/csv/metrics.csv"),
        ["disk is full", "runs/a/csv/metrics.csv"],
    ),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), ["share of the disk"]),
    "full disk under torch.save": (
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 28032 vs 27926"),
        ["checkpoint could not be written", "disk may be full", "unexpected pos"],
    ),
    "full disk under safetensors": (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        ["disk is full"],
    ),
    "not permitted": (PermissionError(errno.EACCES, "Permission denied", "runs/a"), ["runs/a: Permission"]),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "runs"), ["runs", "write elsewhere"]),
    "open files": (OSError(errno.EMFILE, "Too many open files"), ["ulimit -n"]),
    "GPU memory": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has"),
        ["memory of the device is full", "Tried to allocate", "data.batch_size"],
    ),
    "CPU memory": (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you "
            "tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
        ),
        ["memory is full", "data.batch_size"],
    ),
    "Python's memory": (MemoryError(), ["memory is full"]),
    "a killed reader": (
        RuntimeError("DataLoader worker (pid 4242) is killed by signal: Killed. "),
        ["process that reads data", "4242", "data.num_workers"],
    ),
    "a reader that is gone": (
        RuntimeError("DataLoader worker (pid(s) 4242) exited unexpectedly"),
        ["process that reads data", "data.num_workers"],
    ),
    "shared memory": (
        RuntimeError(
            "DataLoader worker (pid 42) is killed by signal: Bus error. It is possible that dataloader's "
            "workers are out of shared memory. Please try to raise your shared memory limit."
        ),
        ["/dev/shm", "--shm-size"],
    ),
    "NCCL": (
        torch.distributed.DistBackendError("NCCL error in: NCCLUtils.cpp:93, remote process exited"),
        ["lost each other", "NCCL error"],
    ),
    "gloo": (
        RuntimeError(
            "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:2"
        ),
        ["lost each other"],
    ),
    "port": (
        torch.distributed.DistNetworkError(
            "The server socket has failed to listen on any local network address. port: 37343, code: -98, "
            "name: EADDRINUSE, message: address already in use"
        ),
        ["port of the run is taken", "MASTER_PORT"],
    ),
    "GPU": (RuntimeError("CUDA error: unspecified launch failure"), ["GPU failed", "CUDA_LAUNCH_BLOCKING"]),
    "server": (
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        ["server", "trainer.logger"],
    ),
}


@pytest.mark.parametrize("name", OF_MACHINES)
def test_a_failure_of_the_machine_is_told_with_its_cause_and_a_remedy(name: str) -> None:
    error, words = OF_MACHINES[name]
    code, message = told(error)
    assert code == FAILURE
    assert all(word in message for word in words), message
    assert len(message.splitlines()) <= 2


def test_the_cause_counts_where_an_exception_follows_from_it() -> None:
    error = RuntimeError("could not finish the archive")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device", "last.ckpt")
    assert "disk is full: last.ckpt" in told(error).message


def test_a_server_of_a_logger_that_refuses_is_named() -> None:
    module = ModuleType("wandb.errors")
    kind = type("AuthenticationError", (Exception,), {"__module__": module.__name__})
    code, message = told(kind("API key not configured"))
    assert code == FAILURE
    assert "AuthenticationError: API key not configured" in message
    assert "WANDB_MODE=offline" in message


def test_what_lightning_refuses_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="devices") as caught:
        Trainer(accelerator="cpu", devices=-1)
    error = caught.value
    assert error.__traceback__ is not None
    assert told(error.with_traceback(error.__traceback__.tb_next)).code == MISTAKE  # without this file
    assert told(MisconfigurationException("two loggers of one name")) == (MISTAKE, "two loggers of one name")


def test_a_package_that_is_missing_is_a_mistake_and_named() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        __import__("no_such_package_at_all")
    caught.value.__traceback__ = None  # of this file, which would be the user's
    assert "No module named 'no_such_package_at_all'" in told(caught.value).message


def test_our_own_exceptions_keep_their_code() -> None:
    assert told(UserError("a")).code == MISTAKE
    assert told(OptionError("width", 0, "give 1 or more", "pointer")).code == MISTAKE
    assert told(WeightsUnavailable("no connection")).code == MISTAKE
    assert told(ShardError("checksum", "x.tar", "e1", "")).code == FAILURE
    assert told(RemoteError("s3://a/x.tar", 1, "gone")).code == FAILURE  # a ShardError
    assert told(RunFailed("late", MISTAKE)) == (MISTAKE, "late")
    assert told(NonFiniteLossError("the loss is nan")) == (FAILURE, "the loss is nan")


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "mycallbacks.py"
    file.write_text("def on_start(trainer):\n    count = 0\n    return 1 / count\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield file
    sys.modules.pop("mycallbacks", None)


def test_an_exception_in_the_users_own_file_names_file_line_and_function(own_file: Path, capfd: Any) -> None:
    import mycallbacks  # type: ignore[import-not-found]

    assert guard(lambda: mycallbacks.on_start(None)) == FAILURE
    err = capfd.readouterr().err
    assert f"error: {own_file}, line 3, in on_start: ZeroDivisionError: division by zero\n--debug" in err
    with pytest.raises(ZeroDivisionError):
        guard(lambda: mycallbacks.on_start(None), debug=True)


def test_also_where_it_ran_in_a_reader(own_file: Path) -> None:
    text = (
        "Caught ZeroDivisionError in DataLoader worker process 0.\n"
        "Original Traceback (most recent call last):\n"
        f'  File "{torch.__file__}", line 3, in loop\n    run()\n'
        f'  File "{own_file}", line 3, in on_start\n    return 1 / count\n'
        "ZeroDivisionError: division by zero\n"
    )
    error = ZeroDivisionError(text)
    message = told(error).message
    assert f"{own_file}, line 3, in on_start: ZeroDivisionError: division by zero" in message
    assert "Original" not in message


def test_a_message_of_two_lines_from_a_reader_stays_whole() -> None:
    text = (
        "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 3, in loop\n    run()\nv1lit.cli.errors.UserError: first\nsecond: more\n'
    )
    assert told(UserError(text)).message == "first\nsecond: more"


def test_what_nobody_foresaw_is_a_bug() -> None:
    assert explain(RuntimeError("inconsistent tensor size, expected tensor [2] and src [3]")) is None
    assert explain(KeyError("x")) is None


def test_of_a_long_message_both_ends_are_shown() -> None:
    text = two_lines(f"{'begin ' * 200}\n{'middle ' * 200}\nthe cause at the end")
    assert text.startswith("begin")
    assert text.endswith("the cause at the end")
    assert len(text) <= LONGEST
