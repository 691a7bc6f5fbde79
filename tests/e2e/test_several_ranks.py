"""Two ranks of `lightning run`: compared before they train, named when they fall behind, each with a log."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest
from helpers.threaded_ranks import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = [
    "--data.source.options.examples=16", "--data.source.options.val_examples=2", "--data.batch_size=2",
    "--trainer.accelerator=cpu", "--trainer.strategy=ddp", "--trainer.max_steps=3",
    "--trainer.log_every_n_steps=1", "--model.backbone.attention=sdpa", "--run.peak_tflops=1",
    "--run.report_examples=0", "--run.export=false", "--run.name=x",
]  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def environment(**more: str) -> dict[str, str]:
    ours = {
        name: value
        for name, value in os.environ.items()
        if name not in ("V1LIT_RUN_FOLDER", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK")
    }
    return {**ours, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **more}


def run(folder: Path, *changes: str, **more: str) -> subprocess.Popen[str]:
    """`lightning run tiny_qwen` in a folder, with what it prints in `output.txt` there."""
    command = [sys.executable, "-m", "v1lit.cli.lightning", "run", "tiny_qwen", *SMALL, *changes]
    output: IO[str]
    with (folder / f"output{more.get('NODE_RANK', '')}.txt").open("w") as output:
        return subprocess.Popen(
            command, cwd=folder, env=environment(**more), stdout=output, stderr=subprocess.STDOUT, text=True
        )


def wait_for(path: Path, words: str, process: subprocess.Popen[str]) -> str:
    """What a file says, once these words are in it."""
    while True:
        ended = process.poll() is not None
        text = path.read_text() if path.exists() else ""
        if re.search(words, text):
            return text
        assert not ended, text
        time.sleep(0.05)


def answers(port: int) -> bool:
    """Whether somebody serves a port of this machine."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def two_nodes(folder: Path, *changes: list[str], port: int = 0) -> list[subprocess.Popen[str]]:
    """A run of two nodes with a process each, as variables of the environment make it."""
    port = port or free_port()
    return [
        run(folder, "--trainer.devices=1", "--trainer.num_nodes=2", *of_node, MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port), NODE_RANK=str(node))
        for node, of_node in enumerate(changes)
    ]  # fmt: skip


def test_a_rank_without_data_is_named_and_every_rank_has_its_log(tmp_path: Path) -> None:
    """Rank 1 reads nothing until a file is there, which is made once it has been named."""
    (tmp_path / "stuck.py").write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        "def wait(example):\n"
        "    while os.environ.get('LOCAL_RANK') == '1' and not Path('go').exists():\n"
        "        time.sleep(0.05)\n"
        "    return example\n"
    )
    slow = ["--data.map=stuck.wait", "--data.map_validation=false", "--run.behind_after=2"]
    process = run(tmp_path, "--trainer.devices=2", *slow)
    said = wait_for(tmp_path / "output.txt", r"rank 1 \(.*\) is behind", process)
    assert re.search(r"rank 1 \(.*\) is behind: for \d+ s at step 0, waiting for data", said)
    (tmp_path / "go").touch()
    assert process.wait() == 0
    said = (tmp_path / "output.txt").read_text()
    assert len(re.findall("is behind", said)) == 1
    assert re.search(r"rank 1 \(.*\) moves again, after \d+ s", said)
    assert re.search(r"all-reduce of 64 MiB over 2 ranks: \d+ ms", said)
    first, second = ((tmp_path / f"runs/x/logs/rank-000{rank}.log").read_text() for rank in range(2))
    assert "is behind" in first
    assert "trained 3 steps" not in second
    assert re.search(r"rank 1 .*has not moved for \d+ s: step 0, waiting for data", second)
    assert "v1lit/data/loading/" in second  # where it stands


def test_another_recipe_on_one_node_stops_both_before_they_train(tmp_path: Path) -> None:
    first, second = two_nodes(tmp_path, [], ["--model.optimizer.lr=0.5", "--data.seed=3"])
    assert (first.wait(), second.wait()) == (2, 2)
    said = (tmp_path / "output0.txt").read_text()
    assert re.search(r"differs: model.optimizer.lr is .* on rank 0 \(.*\), but 0.5 on rank 1", said)
    assert re.search(r"differs: data.seed is 0 on rank 0 \(.*\), but 3 on rank 1", said)
    assert "do not fit together, in 2 ways" in said
    assert "rank 0 says in what" in (tmp_path / "output1.txt").read_text()
    assert not (tmp_path / "runs/x").exists()


def test_a_node_that_never_comes_is_named_and_ctrl_c_works_until_then(tmp_path: Path) -> None:
    (first,) = two_nodes(tmp_path, ["--run.wait_for_ranks=1"])
    assert first.wait() == 1
    said = (tmp_path / "output0.txt").read_text()
    assert "rank 1 of 2 did not come within 1 s (run.wait_for_ranks)" in said
    assert not (tmp_path / "runs/x").exists()
    port = free_port()
    (first,) = two_nodes(tmp_path, [], port=port)
    while not answers(port):
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=60) == 130
    assert "stopped by Ctrl-C before the first step" in (tmp_path / "output0.txt").read_text()
