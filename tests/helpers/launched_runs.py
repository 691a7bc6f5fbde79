"""Small runs that `v1lit launch` starts as processes, and a callback that lets ranks die in them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
STEPS = 6
RECIPE = """
base: tiny_qwen
trainer:
  max_steps: {steps}
  val_check_interval: 100
  enable_progress_bar: false
  callbacks: [{{class_path: dying.Dies, init_args: {{how: {how}}}}}]
model: {{backbone: {{attention: sdpa}}}}
data:
  batch_size: 2
  num_workers: 0
  source: {{folder: {data}, options: {{examples: 40, val_examples: 2}}}}
run: {{checkpoint_every: 2, peak_tflops: 1, report_examples: 0, pictures: 0, export: false, name: it}}
"""
DYING = '''
import os, signal, time
from pathlib import Path
from lightning import Callback

class Dies(Callback):
    """Before step 4, with a checkpoint of step 2, rank 1 is killed once or the run is told to stop; or rank 1
    fails at its first step each time.
    """

    def __init__(self, how: str):
        self.how = how

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.how == "fails" and trainer.global_rank == 1:
            raise RuntimeError("the disk melted")
        if trainer.global_step != 3:
            return
        first = Path(f"seen-by-{trainer.global_rank}")
        again = first.exists()
        if not again:
            first.touch()
        if self.how == "killed" and trainer.global_rank == 1 and not again:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "asked" and trainer.global_rank == 0 and not again:
            os.kill(os.getppid(), signal.SIGUSR1)
            time.sleep(0.5)
'''


def environment(**more: str) -> dict[str, str]:
    """That of a process which finds this checkout, without what an earlier launch has set."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "V1LIT_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def write_recipe(folder: Path, data: Path, how: str) -> Path:
    """A run of six steps that saves every second one, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "dying.py").write_text(DYING)
    (folder / "recipe.yaml").write_text(RECIPE.format(how=how, data=data, steps=STEPS))
    return folder


def launch(
    folder: Path, *options: str, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`v1lit launch local recipe.yaml` on two nodes of one rank, to its end."""
    command: Sequence[str] = (
        "launch", "local", "recipe.yaml", "--nodes=2", "--procs=1", *options
    )  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "v1lit.cli.main", *command],
        cwd=folder,
        env=environment(**(variables or {})),
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the newest checkpoint, which must be that of the last step."""
    state = torch.load(folder / "runs" / "it" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == STEPS
    weights: dict[str, torch.Tensor] = state["state_dict"]
    return weights


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
