"""The Triton kernel without a GPU: the tests of the joint loss once more, under Triton's interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.dependencies

HERE = Path(__file__).parent
SOME = "triton and (not torch or (float32 and not gate) or (bfloat16 and gate and smoothed and not several))"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, for test_joint_loss.py")
def test_the_kernel_passes_the_tests_of_the_loss_under_the_interpreter() -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    pytest.importorskip("triton", reason="triton is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(HERE / "test_joint_loss.py"), "-k", SOME, "-q", "-x",
         "-p", "no:cacheprovider"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 100
