"""`v1lit generate`: one question, and rows, from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.asked import read_rows, save_model, write_rows
from PIL import Image

from v1lit.cli.main import main

pytestmark = pytest.mark.dependencies

COMMAND = [sys.executable, "-m", "v1lit.cli.main", "generate"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("saved") / "model"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def ask(*arguments: str) -> int:
    return main(["generate", *arguments, "--max-new-tokens", "4"])


def test_one_question_is_answered_drawn_and_written(
    model: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_rows(here, [])
    files = ("--draw", "seen.png", "--html", "seen.html")
    assert ask(model, "a.png", "b.png", "Where is it?", *files) == 0
    out, err = capfd.readouterr()
    assert "<|copy_" in out
    assert "look 1: a region: image 1 [" in out
    assert out.splitlines()[-1] == "answer: none"
    assert err == ""
    assert Image.open("seen.png").size == (112, 84)
    assert Image.open("seen-2.png").size == (56, 168)
    assert "<svg" in (here / "seen.html").read_text(encoding="utf-8")
    assert not list(here.glob(".*"))
    assert ask(model, "a.png", "b.png", "Where is it?", "--stream") == 0
    assert capfd.readouterr().out == out


def test_json_is_all_that_is_printed(model: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_rows(here, [])
    options = ("--json", "--best-of", "2", "--temperature", "3", "--seed", "5")
    assert ask(model, "a.png", "Where is it?", *options) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["counts"]["generated"] == 4
    assert ask(model, "a.png", "Where is it?", *options, "--stream") == 2  # best of parts there is none


def test_rows_are_answered_once_and_what_failed_is_named(
    model: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"image": "a.png", "question": "Where?"}, {"image": "no.png", "question": "?", "id": "lost"}]
    write_rows(here, rows)
    for _ in range(2):
        assert ask(model, "rows.jsonl", "--out", "out.jsonl", "--no-progress") == 1
        out, err = capfd.readouterr()
        assert out == "1 of 2 rows have an answer: out.jsonl\n"
        assert "no answer, 1 rows:\n  row 1 (lost): there is no image file no.png" in err
        assert "--retry-failed" in err
    Image.new("RGB", (60, 60)).save("no.png")
    assert ask(model, "rows.jsonl", "--out", "out.jsonl", "--retry-failed") == 0
    assert [line["id"] for line in read_rows(here / "out.jsonl")] == ["1", "lost"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rows.jsonl"], "an image and a question, or rows and --out FILE"),
        (["rows.jsonl", "--out", "o.jsonl", "--json"], "--json is for one question"),
        (["a.png", "Where?", "--out", "o.jsonl"], "--out is for rows"),
        (["a.png", "Where?", "--draw", "o.txt"], "pictures end in .png"),
        (["a.png", "Where?", "--bits", "3"], "invalid choice: 3"),
        (["missing.png", "Where?"], "there is no image file missing.png"),
        (["missing.jsonl", "--out", "o.jsonl"], "there is no file missing.jsonl"),
        (["a.png", "Where?", "--best-of", "2", "--beams", "2"], "num_beams is 2; best_of=2"),
        (["a.png", "Where?", "--hmtl", "x"], "did you mean '--html'?"),
    ],
)
def test_a_mistake_takes_two_lines(
    model: str, here: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_rows(here, [{"question": "?"}])
    assert ask(model, *arguments) == 2
    err = capfd.readouterr().err
    assert message in err
    assert len(err.splitlines()) <= 2
    assert not list(here.glob("o.*"))


def test_a_folder_that_is_no_model_is_named(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_rows(here, [])
    assert main(["generate", str(here), "a.png", "Where?"]) == 2
    assert "not an exported model" in capfd.readouterr().err


@pytest.mark.slow
def test_rows_survive_kill_9_and_processes_of_torchrun_share_them(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command is killed amid the work, two processes finish it; the result is that of a quiet run."""
    write_rows(here, [{"image": "ab"[n % 2] + ".png", "question": f"Where? {'So ' * n}"} for n in range(12)])
    how = [
        model,
        "rows.jsonl",
        "--batch-size",
        "1",
        "--max-new-tokens",
        "40",
        "--no-progress",
        "--device",
        "cpu",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert main(["generate", *how, "--out", "whole.jsonl"]) == 0
    part = here / ".out.jsonl.parts" / "rank-00000.jsonl"
    with subprocess.Popen([*COMMAND, *how, "--out", "out.jsonl"], env=env) as begun:
        deadline = time.monotonic() + 200
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        begun.send_signal(signal.SIGKILL)
    assert not (here / "out.jsonl").exists()
    assert part.stat().st_size
    with subprocess.Popen(
        [*COMMAND, *how, "--out", "out.jsonl"], env={**env, "RANK": "0", "WORLD_SIZE": "2"}
    ):
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main(["generate", *how, "--out", "out.jsonl"]) == 0
    assert (here / "out.jsonl").read_bytes() == (here / "whole.jsonl").read_bytes()
    assert not list(here.glob("*.parts"))
