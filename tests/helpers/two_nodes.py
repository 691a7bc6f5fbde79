"""Two nodes on this machine: network namespaces with a cable between them, or else the loopback interface."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from helpers.launched_runs import environment
from helpers.threaded_ranks import free_port

RECIPE = """
base: {base}
trainer:
  val_check_interval: 100
  enable_progress_bar: false
  strategy: {strategy}
  callbacks: [{{class_path: noting.Notes, init_args: {{pause: {pause}}}}}]
model:
  backbone: {{attention: sdpa{part}}}
  optimizer: {{name: adamw, lr: 1.0e-3, schedule: constant, warmup: 0.0}}
data:
  batch_size: 1
  num_workers: 0
  source: {{folder: {data}, options: {{examples: 40, val_examples: 2}}}}
run:
  {{name: it, checkpoint_every: 2, lost_after: 10, peak_tflops: 1, report_examples: 0, pictures: 0,
    export: false}}
"""
NOTING = '''
import json, os, time
from pathlib import Path
from lightning import Callback

class Notes(Callback):
    """Writes what every micro-batch was like; before a step, the first time, waits until it may go on."""

    def __init__(self, pause: int = -1):
        self.pause = pause

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.step = trainer.global_step
        if self.step == self.pause and not Path("go").exists():
            Path(f"here-{trainer.global_rank}").touch()
            while not Path("go").exists():
                time.sleep(0.02)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches  # Lightning has divided it
        line = json.dumps([self.step, loss, list(batch.ids)])
        with open(f"read-{trainer.global_rank}.jsonl", "a") as file:
            file.write(line + "\\n")
'''


class Cable:
    """What joins the two nodes, where they are namespaces.

    Args:
        names: of the namespaces; none where both nodes are on the loopback interface.
    """

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = names
        self.host, self.interface = ("10.77.0.1", "link0") if names else ("127.0.0.1", "lo")

    def on_node(self, number: int) -> list[str]:
        """The words before a command that runs it on a node."""
        return ["ip", "netns", "exec", self.names[number]] if self.names else []

    def cut(self) -> None:
        _ip("-n", self.names[0], "link", "set", "link0", "down")

    def mend(self) -> None:
        if self.names:
            _ip("-n", self.names[0], "link", "set", "link0", "up")


@contextmanager
def cable() -> Iterator[Cable]:
    """Namespaces of this process alone, where they can be made."""
    names = f"v1lit-{os.getpid()}-a", f"v1lit-{os.getpid()}-b"
    try:
        if shutil.which("ip") is None:
            yield Cable()
            return
        try:
            for name in names:
                _ip("netns", "add", name)
            _ip("link", "add", "link0", "netns", names[0], "type", "veth", "peer", "link0", "netns", names[1])
            for number, name in enumerate(names, start=1):
                _ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "link0")
                for link in ("lo", "link0"):
                    _ip("-n", name, "link", "set", link, "up")
        except subprocess.CalledProcessError:  # not allowed here
            yield Cable()
            return
        yield Cable(names)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


BASES = {
    "qwen2_vl": "tiny_qwen",
    "qwen2_5_vl": "tiny_qwen",
    "qwen3_vl": "tiny_qwen3_vl",
    "qwen3_5": "tiny_qwen3_5",
    "llava": "tiny_llava",
    "internvl": "tiny_internvl",
    "gemma3": "tiny_gemma3",
}
"""Recipes of the families; the two Qwens have one."""


def write_run(folder: Path, data: Path, strategy: str, pause: int = -1, family: str = "qwen2_5_vl") -> Path:
    """A recipe with notes of its steps, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    part = ""
    if family == "qwen2_vl":  # whose sizes have other names than those of `tiny_qwen`
        (folder / "backbone.yaml").write_text("name: qwen2_vl\nweights: tiny\n")
        part = ", part: backbone.yaml"
    base = BASES.get(family, "tiny_qwen")
    (folder / "noting.py").write_text(NOTING)
    (folder / "recipe.yaml").write_text(
        RECIPE.format(base=base, part=part, strategy=strategy, data=data, pause=pause)
    )
    return folder


def start_nodes(folder: Path, cable: Cable, procs: int, *changes: str) -> list[subprocess.Popen[bytes]]:
    """`v1lit launch node` on both; what they print is in `node-0.txt` and `node-1.txt`."""
    words = [
        "launch", "node", "recipe.yaml", "--nodes=2", f"--procs={procs}", f"--host={cable.host}",
        f"--port={free_port()}", f"--interface={cable.interface}", "--join-timeout=60",
        f"--launch=test-{time.time_ns()}", "--run.name=it", *changes,
    ]  # fmt: skip
    nodes = []
    for number in range(2):
        command = [
            *cable.on_node(number),
            sys.executable,
            "-m",
            "v1lit.cli.main",
            *words,
            f"--number={number}",
        ]
        with (folder / f"node-{number}.txt").open("wb") as output:
            nodes.append(
                subprocess.Popen(
                    command, cwd=folder, env=environment(), stdout=output, stderr=subprocess.STDOUT
                )
            )
    return nodes


def run_here(folder: Path, *changes: str) -> subprocess.CompletedProcess[str]:
    """`lightning run` in one process."""
    return v1lit(folder, "run", "recipe.yaml", "--trainer.strategy=auto", *changes)


def v1lit(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of v1lit, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "v1lit.cli.main", *words],
        cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip


def steps_of(folder: Path) -> Mapping[int, tuple[float, frozenset[str]]]:
    """Loss and examples of every step, over all ranks. A step that was made again must have been the same."""
    losses: dict[int, dict[frozenset[str], float]] = {}
    for path in folder.glob("read-*.jsonl"):
        for line in path.read_text().splitlines():
            step, loss, ids = json.loads(line)
            known = losses.setdefault(step, {}).setdefault(frozenset(ids), loss)
            assert abs(known - loss) <= 1e-5 * abs(known), (step, ids, known, loss)
    return {
        step: (sum(parts.values()) / len(parts), frozenset().union(*parts)) for step, parts in losses.items()
    }
