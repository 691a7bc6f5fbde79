"""`v1lit generate`: one question, and rows, from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.asked import read_rows, save_model, write_rows
from helpers.steered import last_call, near
from PIL import Image

from v1lit.cli.main import main
from v1lit.grounding.region import Region
from v1lit.grounding.trace import parse_trace
from v1lit.testing.models import processor

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


def said_with(model: str, capfd: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert main(["generate", model, "a.png", "Where is it?", "--json", "--max-new-tokens", "30", *flags]) == 0
    said: dict[str, Any] = json.loads(capfd.readouterr().out)
    return said


def test_every_rule_has_a_flag(model: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_rows(here, [])
    box, other = "0,0,40,30", "1:60,40,112,84"

    def runs(*flags: str) -> list[list[int]]:
        return [look["tokens"] for look in said_with(model, capfd, *flags)["looks"]]

    def patches(*flags: str) -> list[int]:
        return [token for run in runs(*flags) for token in run]

    patch_map = processor("qwen2_5_vl").patch_map((112, 84))
    seen, unseen = (set(patch_map.tokens(Region.from_box(b))) for b in [(0, 0, 40, 30), (60, 40, 112, 84)])
    assert set(patches("--inside", box, "--inside", "0,0,1,1")) <= seen
    assert not set(patches("--outside", other)) & unseen
    assert runs("--no-pointing") == runs("--max-looks", "0") == []
    assert len(runs("--max-looks", "1")) == 1
    assert max(map(len, runs("--max-pointers", "2"))) <= 2
    assert all(len(set(run)) == len(run) for run in runs("--distinct"))
    boxes = torch.tensor(patch_map.boxes)
    for run in runs("--connected"):
        assert all(any(near(boxes, run[at], one) for one in run[:at]) for at in range(1, len(run)))
    once = patches("--once")
    assert len(set(once)) == len(once)
    formed = said_with(model, capfd, "--grammar", "--sample", "--temperature", "3")["text"]
    assert all(problem.start >= last_call(formed) for problem in parse_trace(formed).problems)
    assert "<region>" in said_with(model, capfd, "--look-every", "2", "--max-new-tokens", "90")["text"]
    asked = said_with(model, capfd, "--query", "the cat", "--query", "a dog", "--grammar")
    assert asked["text"].startswith('detect(query="the cat", objects=["')
    free = said_with(model, capfd)
    assert len(free["looks"][0]["tokens"]) > 2, "without flags there would be more"
    assert len(set(patches())) < len(patches())


def test_a_question_is_about_regions(model: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"image": "a.png", "question": "What is <|region_1|>?", "regions": [[0, 0, 30, 30]]},
        {"image": "a.png", "question": "What is <|region_1|>?", "regions": [[0, 0, 300, 30]]},
        {"image": "a.png", "question": "What is <|region_1|>?"},
    ]
    write_rows(here, rows)
    asked = (model, "a.png", "What is <|region_1|>?", "--json", "--max-new-tokens", "4")
    told = []
    for flags in ((), ("--region", "0,0,30,30"), ("--region", "0,0,30,30", "--region-coordinates")):
        assert main(["generate", *asked, *flags]) == 0
        told.append(json.loads(capfd.readouterr().out))
    words, copied, written = (one["counts"]["prompt"] for one in told)
    assert words != copied < written
    flags = ("--out", "out.jsonl", "--no-progress", "--batch-size", "3", "--max-looks", "3")
    assert ask(model, "rows.jsonl", *flags) == 1
    assert "row 1 (2): <|region_1|>: it reaches from [0.0, 0.0, 300.0, 30.0]" in capfd.readouterr().err
    line, _, plain = read_rows(here / "out.jsonl")
    assert (line["counts"]["prompt"], plain["counts"]["prompt"]) == (copied, words)
    assert ask(model, "rows.jsonl", *flags[:-1], "2") == 2, "with another rule it is another file"
    assert "max_looks" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["a.png", "Where?", "--inside", "0,0,9"],
            "--inside: '0,0,9' is no box X1,Y1,X2,Y2 of pixels: a box",
        ),
        (
            ["a.png", "Where?", "--outside", "0:0,0,9,9"],
            "is no box X1,Y1,X2,Y2 of pixels: images are counted",
        ),
        (["a.png", "Where?", "--inside", "500,0,600,9"], "no image token sees something of inside"),
        (["a.png", "Where?", "--max-looks", "-1"], "--max-looks -1: give 0 or more"),
        (
            ["a.png", "Where?", "--query", "it", "--no-pointing"],
            "--query 'it': it asks for looks that --no-p",
        ),
        (["a.png", "Where?", "--look-every", "3", "--max-looks", "0"], "--look-every 3: it asks for looks"),
        (["a.png", "Where?", "--region", "0,0,9,9"], "<|region_1|>: it is given, but never named"),
        (["a.png", "<|region_1|>?", "--region", "0,0,9,900"], "<|region_1|>: it reaches from"),
        (["a.png", "<|region_1|>?", "--region", "2:0,0,9,9"], "<|region_1|>: it lies in image 1, counted"),
        (["rows.jsonl", "--out", "o.jsonl", "--region", "0,0,9,9"], "--region is for one question"),
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
