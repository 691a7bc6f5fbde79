"""`v1lit doctor --cluster` checks ranks that a launcher has started, and refuses a process by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.threaded_ranks import free_port

from v1lit.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_a_process_by_itself_is_told_how_to_start_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--cluster"]) == 2
    assert "torchrun --nproc-per-node=2 -m v1lit.cli.main doctor --cluster" in capsys.readouterr().err


def doctor(folder: Path, rank: int, port: int, *options: str) -> subprocess.Popen[str]:
    variables = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, "-m", "v1lit.cli.main", "doctor", "--cluster", *options],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **variables, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_are_compared_and_try_their_network(tmp_path: Path) -> None:
    port = free_port()
    ranks = [doctor(tmp_path, rank, port) for rank in range(2)]
    (out, err), (other, errors) = (rank.communicate() for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0], err + errors
    lines = out.splitlines()
    assert lines[0].startswith("2 ranks on 1 machine")
    assert lines[1] == "the same on all ranks: versions"
    assert lines[2].startswith("all-reduce of 64 MiB over 2 ranks")
    assert other == ""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_another_recipe_on_one_rank_is_found(tmp_path: Path) -> None:
    port = free_port()
    ranks = [doctor(tmp_path, rank, port, "tiny_qwen", f"--data.seed={rank}") for rank in range(2)]
    (_, err), (_, other) = (rank.communicate() for rank in ranks)
    assert [rank.returncode for rank in ranks] == [2, 2], err
    assert "data.seed is 0 on rank 0" in err
    assert "but 1 on rank 1" in err
    assert "rank 0 says in what" in other
