"""What v1lit recognises in the messages of other packages still stands in the installed ones."""

from __future__ import annotations

import ast
import errno
import mmap
import os
import re
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from packaging.version import Version

from v1lit.cli.failures import OF_WORDS, explain
from v1lit.cli.stopped import LOST
from v1lit.training.quiet import REMARKS, WARNINGS

pytestmark = pytest.mark.dependencies


@cache
def texts(package: str, file: str = "**/*.py") -> str:
    """All texts in the source of a package, each in one piece however it is broken there."""
    found: list[str] = []
    for folder in find_spec(package).submodule_search_locations or ():
        for path in Path(folder).glob(file):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def longest_literal(pattern: str) -> str:
    """The longest piece of a regular expression that stands for itself."""
    pieces = re.split(r"(?<!\\)\([^)]*(?<!\\)\)\??|\\d\+|\.\*|\\s\*|_\w+'", pattern)
    return max((re.sub(r"\\(.)", r"\1", piece) for piece in pieces), key=len)


IN_PIECES = {
    "Restored all states from the checkpoint at ": ["Restored all states", " from the checkpoint at "]
}
"""Lightning puts these texts together."""


OF_BITSANDBYTES = ("Failed to load CPU gemm_4bit_forward ",)
NO_LONGER_SAID = {r"`torch\.distributed\.(all_gather_into|reduce_scatter)_tensor` is deprecated": "2.15"}
"""Patterns for older versions of torch, with the first one that does not need them."""


@pytest.mark.parametrize("pattern", [*REMARKS, *WARNINGS])
def test_what_a_run_leaves_out_is_still_said(pattern: str) -> None:
    if pattern in OF_BITSANDBYTES:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
        assert longest_literal(pattern) in texts("bitsandbytes", "backends/cpu/ops.py")
        return
    first_without = NO_LONGER_SAID.get(pattern)
    expected = first_without is None or Version(torch.__version__) < Version(first_without)
    for words in IN_PIECES.get(pattern, [longest_literal(pattern)]):
        assert len(words) > 10
        of_torch = (texts("torch", file) for file in ("utils/_pytree.py", "distributed/distributed_c10d.py"))
        said = words in texts("lightning") or any(words in text for text in of_torch)
        assert said is expected, words


@cache
def libraries(*names: str) -> list[mmap.mmap]:
    folder = Path(torch.__file__).parent / "lib"
    found = [path for name in names for path in folder.glob(f"lib{name}.*") if path.stat().st_size > 10_000]
    return [mmap.mmap(os.open(path, os.O_RDONLY), 0, access=mmap.ACCESS_READ) for path in found]


ON_CPU = {
    "enforce fail at inline_container": ["enforce fail at ", "inline_container.cc"],
    "PytorchStreamWriter failed": ["PytorchStreamWriter failed"],
    "DefaultCPUAllocator": ["DefaultCPUAllocator: "],
    "DataLoader worker .*(Bus error|shared memory)": ["DataLoader worker", "out of shared memory"],
    "unable to (open|mmap|allocate) shared memory": ["unable to open shared memory"],
    r"unable to mmap \d+ bytes": ["unable to mmap ", " bytes from file"],
    "DataLoader worker .*(exited unexpectedly|": ["DataLoader worker", "exited unexpectedly"],
    "is killed by signal": ["is killed by signal"],
    "[Aa]ddress already in use": ["ddress already in use"],
    "EADDRINUSE": ["EADDRINUSE"],
    "gloo": ["gloo"],
    "Socket Timeout": ["Socket Timeout"],
    "waiting for clients": ["waiting for clients"],
    "client socket has timed out": ["client socket has timed out"],
    "wait timeout after": ["wait timeout after"],
    "TCPStore": ["TCPStore"],
}  # fmt: skip
"""Alternatives of `OF_WORDS` -> what torch's own libraries must hold for them."""
ON_GPU = {
    r"^(CUDA|HIP|XPU|MPS) out of memory": [" out of memory. "],
    r"(CUDA|HIP) error": ["CUDA error: "],
    "CUDA driver": ["CUDA driver"],
    "NCCL (error|": ["NCCL error"],
    "[Cc]ollective operation timeout": ["ollective operation timeout"],
}


def missing(words: Iterable[str], *names: str) -> list[str]:
    return [word for word in words if not any(held.find(word.encode()) >= 0 for held in libraries(*names))]


@pytest.mark.parametrize("part", ON_CPU)
def test_torch_still_says_what_a_failure_is_told_by(part: str) -> None:
    assert any(part in pattern for pattern, _, _ in OF_WORDS), f"{part} is not looked for any more"
    assert not missing(ON_CPU[part], "c10", "torch_python", "torch_cpu")


@pytest.mark.skipif(not libraries("torch_cuda"), reason="torch without CUDA")
@pytest.mark.parametrize("part", ON_GPU)
def test_so_does_torch_for_cuda(part: str) -> None:
    assert any(part in pattern for pattern, _, _ in OF_WORDS), f"{part} is not looked for any more"
    assert not missing(ON_GPU[part], "c10_cuda", "torch_cuda")


@pytest.mark.parametrize("words", LOST)
def test_a_process_that_is_gone_is_still_told_by_these_words(words: str) -> None:
    of_system = os.strerror(errno.ECONNRESET)
    assert words.lower() in of_system.lower() or not missing([words], "torch_python", "torch_cpu")


def test_the_system_still_says_that_a_disk_is_full_and_that_a_peer_is_gone() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT, errno.ECONNRESET):
        assert any(re.search(pattern, os.strerror(number)) for pattern, _, _ in OF_WORDS), os.strerror(number)


@pytest.mark.parametrize(
    "words",
    [
        "Problem with given class_path ",
        "Expected a dot import path string: ",
        "correspond to a subclass of",
        "is not accepted",
        "Not a valid subclass",
        "Does not validate",
        "Expected a ",
        "Got value: ",
        'Parser key "',
    ],
)
def test_the_parser_still_says_in_these_words_what_it_does_not_take(words: str) -> None:
    assert words in texts("jsonargparse")


def test_interpolations_that_lead_nowhere_are_still_told_by_omegaconf() -> None:
    assert "Interpolation key '" in texts("omegaconf")


def test_what_lightning_calls_a_misconfiguration_has_still_that_name() -> None:
    error = MisconfigurationException("two loggers of one name")
    assert type(error).__name__ == "MisconfigurationException"
    assert explain(error) is not None


def test_a_literal_of_a_pattern_is_what_stands_for_itself() -> None:
    assert longest_literal(r"(\[rank: \d+\] )?Seed set to ") == "Seed set to "
    assert longest_literal(r"has `__len__` \(\d+\) defined\.") == "has `__len__` ("
