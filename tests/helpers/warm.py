"""Processes that need not import for seconds: each is forked off one that has imported, and done nothing."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

_IMPORTED = ("lightning", "v1lit.cli.recipe_cli", "v1lit.training.run", "v1lit.inference.predictor")
_STARTED_WITH = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def call_warm(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    folder: Path,
    environ: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Call a function of a module in a process of its own; what it returns is the exit code.

    Args:
        folder: that it works in.
        environ: all of its environment, by default this process's.
        timeout: in seconds; raises `TimeoutExpired` after it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    with pytest.MonkeyPatch.context() as patch:  # what libraries read when they are imported
        for name, value in _STARTED_WITH.items():
            patch.setenv(name, value)
        multiprocessing.forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as aside:
        out, err = Path(aside, "out"), Path(aside, "err")
        environ = {**os.environ, **_STARTED_WITH} if environ is None else dict(environ)
        process = context.Process(
            target=_called, args=(function, tuple(arguments), str(folder), environ, str(out), str(err))
        )
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(repr(function), timeout, out.read_text(), err.read_text())
        code = process.exitcode
        process.close()
        assert code is not None
        return subprocess.CompletedProcess([repr(arguments)], code, out.read_text(), err.read_text())


def _called(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    folder: str,
    environ: dict[str, str],
    out: str,
    err: str,
) -> None:
    """The process: as one that was started by a shell, with its output in two files."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    sys.path.insert(0, folder)  # as `python -m` has it
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, stream.fileno())
        os.close(file)
    code = 1
    try:
        code = function(*arguments) or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
