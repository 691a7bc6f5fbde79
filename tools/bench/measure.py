"""Seconds and peak memory of one piece of work."""

from __future__ import annotations

import contextlib
import gc
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

Work = Callable[[], object]


class Seconds(NamedTuple):
    """Of several runs."""

    median: float
    least: float


class MeasureError(RuntimeError):
    """A subprocess gave no result; the message is its last word."""


def seconds(work: Work, repeats: int = 3) -> Seconds:
    """Time `work`, after one run that is not counted."""
    return alternate({"": work}, repeats)[""]


def alternate(works: Mapping[str, Work], repeats: int = 3, warm: bool = True) -> dict[str, Seconds]:
    """Time several pieces of work in turn, A B A B ..., so that a machine that slows down slows all of them.

    `warm`: each runs once before, uncounted. Raises ValueError for fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; at least 1 is needed")
    for work in works.values() if warm else ():
        work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            taken[name].append(_once(work))
    return {name: Seconds(statistics.median(times), min(times)) for name, times in taken.items()}


def _once(work: Work) -> float:
    _synchronize()
    start = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_above(work: Work, device: torch.device | str = "cpu") -> int:
    """Bytes that `work` holds at its worst beyond what is held when it begins.

    On a CPU the process's resident memory, so run it in a process of its own, before anything larger: memory
    that was freed but not given back is counted as held. On a GPU what PyTorch has allocated.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # Linux sets the high-water mark back when told to; elsewhere it is that of the whole life of the process.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """Bytes of physical memory of this process: now (`VmRSS`) or at most (`VmHWM`)."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found, f"no {field} in /proc/self/status"
    return int(found[1]) * 1024


def in_subprocess(arguments: Sequence[str], timeout: float | None = None) -> dict[str, Any]:
    """Run `python ARGUMENTS` and give the JSON object that it prints last.

    Raises MeasureError with the last line of its errors, if it fails, prints no such thing or takes longer
    than `timeout` seconds.
    """
    try:
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise MeasureError(f"stopped after {timeout:.0f} s") from None
    if done.returncode != 0:
        raise MeasureError(last_line(done.stderr) or f"exit code {done.returncode}")
    try:
        result = json.loads(last_line(done.stdout))
    except json.JSONDecodeError:
        result = None
    if not isinstance(result, dict):
        raise MeasureError("it printed no result")
    return result


def last_line(text: str) -> str:
    """The last line that is not empty, or nothing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
