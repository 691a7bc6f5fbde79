"""Real processes, killed or stopped, and what is left of their runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SOAK = Path(__file__).parents[2] / "tools" / "soak.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc"),
    pytest.mark.timeout(300),
    pytest.mark.slow,
]


def test_runs_killed_three_times_end_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    command = [sys.executable, str(SOAK), "--kills", "3", "--seed", "7", "--folder", str(tmp_path / "soak")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-equal" in done.stdout


def test_a_signal_to_all_processes_of_a_run_on_two_ranks_leaves_a_checkpoint_to_go_on_from(
    tmp_path: Path,
) -> None:
    """As a terminal sends Ctrl-C and a cluster SIGTERM: to both ranks and all who read for them."""
    changes = [
        "--data.source.options.examples=40",
        "--data.source.options.val_examples=2",
        "--data.batch_size=2",
        "--data.num_workers=1",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--trainer.max_steps=1000",
        "--run.checkpoint_every=1",
        "--model.backbone.attention=sdpa",
        "--run.peak_tflops=1",
        "--run.name=both",
    ]
    checkpoint, output = "runs/both/checkpoints/last.ckpt", tmp_path / "output.txt"
    with output.open("w") as file:
        run = subprocess.Popen(
            [sys.executable, "-m", "v1lit.cli.lightning", "run", "tiny_qwen", *changes],
            cwd=tmp_path,
            env={**ENVIRONMENT, "PYTHONPATH": str(SOAK.parents[1])},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while run.poll() is None and not (tmp_path / checkpoint).exists():
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGTERM)
    code, said = run.wait(), output.read_text()
    assert code == 143, said
    (stopped,) = [line for line in said.splitlines() if line.startswith("stopped by SIGTERM")]
    state = torch.load(tmp_path / checkpoint, weights_only=True)
    assert (
        f"after step {state['global_step']}; checkpoint {checkpoint}; resume with: lightning run" in stopped
    )
    assert state["global_step"] > 0
