"""What the figures were measured on: the machine, the versions, and the most that it can do."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch
from measure import seconds

from v1lit.processes import available_cores


def describe_machine() -> dict[str, str]:
    """Processor, cores, memory and, where there is one, the GPU; no names of hosts or people."""
    found = {
        "processor": _processor(),
        "cores": f"{available_cores()}, {torch.get_num_threads()} threads in PyTorch",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
    }
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found["GPU"] = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
    return found


def matmul_ceiling(device: torch.device | str, dtype: torch.dtype, quick: bool = False) -> float:
    """FLOP/s of the best of several products of large square matrices; a product is 2 n^3 operations."""
    size = 256 if quick else 8192 if torch.device(device).type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / seconds(lambda: torch.mm(a, b, out=out), repeats=3 if quick else 10).least


def bandwidth_ceiling(device: torch.device | str, quick: bool = False) -> float:
    """Bytes/s of the best of several copies that no cache holds; every byte is read and written."""
    count = 2**20 if quick else 2**28
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / seconds(lambda: target.copy_(source), repeats=3 if quick else 10).least


def _processor() -> str:
    """Its name; on Linux `platform` knows only the architecture."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
