"""The page: what failed is listed with its reason, what is missing too, and who stops keeps the old one."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import loss
import measure
import page
import pytest
import run
from rows import Row

ROOT = Path(__file__).resolve().parents[2]
GOOD = """
import json, sys
row = {"title": "a < b | c", "value": 1234.5, "unit": "s", "command": "python x.py", "limit": 600.0,
       "share": 0.486, "goal": ">= 3", "met": True, "note": "why"}
json.dump([row], open(sys.argv[sys.argv.index("--json") + 1], "w"))
"""


def script(folder: Path, name: str, code: str) -> run.Benchmark:
    (folder / name).write_text(code)
    return run.Benchmark(name.removesuffix(".py").title(), name, 20)


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for scripts that stand in for the benchmarks; ceilings cost nothing."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    monkeypatch.setattr(run, "HERE", folder)
    monkeypatch.setattr(run, "ceilings", lambda quick: {"matrix products": "3 GFLOP/s"})
    return folder


def run_all(monkeypatch: pytest.MonkeyPatch, out: Path, *benchmarks: run.Benchmark) -> tuple[int, str]:
    monkeypatch.setattr(run, "BENCHMARKS", benchmarks)
    code = run.main(["--out", str(out)])
    return code, (out / "benchmarks.md").read_text()


def test_the_page_has_every_row(scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = run_all(monkeypatch, tmp_path / "out", script(scripts, "good.py", GOOD))
    assert code == 0
    assert "### Good" in text
    assert "| a &lt; b / c | 1,234 s | &gt;= 3: met | 600 s | 49% | `python x.py` |" in text
    assert "- a &lt; b / c: why" in text
    assert "matrix products 3 GFLOP/s" in text
    assert "torch 2." in text
    assert sorted(os.listdir(tmp_path / "out")) == ["benchmarks.json", "benchmarks.md"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('too little memory')", "failed: too little memory"),
        (
            "open('/no/such/place/file.bin')",
            "failed: FileNotFoundError: [Errno 2] No such file or directory: 'file.bin'",
        ),
        ("pass", "failed: it wrote no rows"),
    ],
)
def test_what_fails_is_listed_with_its_reason_and_the_rest_is_run(
    code: str, reason: str, scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = script(scripts, "bad.py", code), script(scripts, "good.py", GOOD)
    exit_code, text = run_all(monkeypatch, tmp_path / "out", *both)
    assert exit_code == 1
    assert "| Bad | **missing** |" in text
    assert reason in text
    assert "1,234 s" in text
    assert str(tmp_path) not in text


def test_what_takes_too_long_is_stopped_with_its_children(
    scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child"
    code = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(child)!r}, "w").write(str(child.pid))
time.sleep(60)
"""
    slow = replace(script(scripts, "slow.py", code), seconds=1.5)
    exit_code, text = run_all(monkeypatch, tmp_path / "out", slow)
    assert exit_code == 1
    assert "stopped after 2 s" in text
    deadline = time.monotonic() + 10
    while alive(int(child.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(child.read_text()))


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # dead, and nobody asked yet how it ended


@pytest.mark.slow
def test_ctrl_c_leaves_the_old_page(tmp_path: Path) -> None:
    for name in ("benchmarks.md", "benchmarks.json"):
        (tmp_path / name).write_text("{}")
    started = tmp_path / "started"
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tools" / "bench")!r})
import run
run.ceilings = lambda quick: open({str(started)!r}, "w").close() or __import__("time").sleep(60)
try:
    run.main(["--out", {str(tmp_path)!r}])
except KeyboardInterrupt:
    sys.exit(9)
"""
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    deadline = time.monotonic() + 60
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 9
    assert (tmp_path / "benchmarks.md").read_text() == "{}"
    assert (tmp_path / "benchmarks.json").read_text() == "{}"


def test_quick_figures_do_not_get_into_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--quick"])
    assert "--out FOLDER" in capsys.readouterr().err


def test_figures_of_a_gpu_are_missing_until_there_was_one(tmp_path: Path) -> None:
    page.update(tmp_path, "cpu", page.report({}, {"The loss": [Row("time", 1.0, "s", "c")]}))
    text = (tmp_path / "benchmarks.md").read_text()
    titles = [title for group in page.GPU_TITLES.values() for title in group]
    assert text.count("**missing**") == len(titles) == text.count(f": {page.NO_GPU}")
    assert all(title in text for title in titles)


def test_one_section_leaves_the_other_as_it_was(tmp_path: Path) -> None:
    page.update(tmp_path, "cpu", page.report({}, {"The loss": [Row("time on a CPU", 1.0, "s", "c")]}))
    page.update(tmp_path, "gpu", page.report({}, {"The loss": [Row("time on a GPU", 2.0, "s", "c")]}))
    text = (tmp_path / "benchmarks.md").read_text()
    assert "| time on a CPU | 1.00 s |" in text
    assert "| time on a GPU | 2.00 s |" in text
    assert "missing**" not in text


@pytest.mark.parametrize("content", ["[]", '{"cpu": {}}', "x", '{"cpu": {"groups": {"a": [{"b": 1}]}}}'])
def test_results_of_something_else_are_not_overwritten(content: str, tmp_path: Path) -> None:
    (tmp_path / "benchmarks.json").write_text(content)
    with pytest.raises(ValueError, match=r"benchmarks\.json was not written by these benchmarks"):
        page.update(tmp_path, "cpu", page.report({}, {}))
    assert (tmp_path / "benchmarks.json").read_text() == content


def test_the_page_in_docs_says_what_was_kept() -> None:
    docs = ROOT / "docs"
    assert (docs / "benchmarks.md").read_text() == page.render(page.read_results(docs / "benchmarks.json"))


def test_the_page_names_no_place_on_this_machine() -> None:
    for name in ("benchmarks.md", "benchmarks.json"):
        file = ROOT / "docs" / name
        if file.exists():
            assert str(ROOT) not in file.read_text()
            assert "Traceback" not in file.read_text()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1234.5, "1,234"), (12.34, "12.3"), (3.14159, "3.14"), (0.81234, "0.812"), (0.0, "0"), (-250.0, "-250")],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert page.number(value) == shown


def test_the_makefile_has_all_targets() -> None:
    made = (ROOT / "Makefile").read_text()
    assert "\nbench: $(VENV)/.dev\n\t$(BIN)/python tools/bench/run.py\n" in made
    generate = "OMP_NUM_THREADS=1 $(BIN)/python tools/bench/generate.py"
    assert f"\nbench-generate: $(VENV)/.dev\n\t{generate}\n" in made
    assert "\nbench-gpu: $(VENV)/.dev\n\t$(BIN)/python tools/bench/gpu.py\n" in made


def test_the_limits_of_all_benchmarks_together_are_ten_minutes() -> None:
    assert sum(one.seconds for one in run.BENCHMARKS) < 590


@pytest.mark.slow
def test_a_run_of_all_benchmarks_in_tiny_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that `make bench` does, in this one process, where torch is imported already."""

    def run_here(words: list[str], limit: float) -> str | None:
        code = importlib.import_module(Path(words[1]).stem).main(words[2:])
        return f"exit code {code}" if code else None

    def result_here(words: list[str], timeout: float | None = None) -> dict[str, object]:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            importlib.import_module(Path(words[0]).stem).main(words[1:])
        result = dict(json.loads(measure.last_line(printed.getvalue())))
        return {**result, "peak": result["peak"] or 1.0}  # tiny sizes fit into memory that was freed before

    monkeypatch.setattr(run, "_run", run_here)
    monkeypatch.setattr(loss, "in_subprocess", result_here)
    assert run.main(["--quick", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "benchmarks.md").read_text()
    for title in ("The loss", "Packing", "The whole step"):
        assert f"### {title}" in text
    kept = json.loads((tmp_path / "benchmarks.json").read_text())["cpu"]["groups"]
    rows = [row for group in kept.values() for row in group]
    assert all(row["value"] is not None and row["command"] for row in rows)
    assert all(row["met"] is None for row in rows)


@pytest.mark.parametrize("benchmark", run.BENCHMARKS, ids=lambda one: one.script)
def test_every_benchmark_is_there(benchmark: run.Benchmark) -> None:
    assert (ROOT / "tools" / "bench" / benchmark.script).is_file()
