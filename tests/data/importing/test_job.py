"""An import has the same bytes however it went, and leaves alone what is not its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.v1g_cases import content, ids, numbered, rejected, row, run, write

from v1lit.data.importing import job
from v1lit.data.shards import list_shards, sidecar_name, staging, verify_shard
from v1lit.data.shards.staging import StagedFolder

pytestmark = pytest.mark.dependencies


# --- ids that come again ---


def test_doubles_are_found_over_rows_groups_and_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write(source / "a.parquet", [row("x"), row("y"), row("x"), row("z")], group=2)
    write(source / "b.parquet", [row("y"), row("new"), row("z"), row("new")], group=2)
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        report = run(source, out, workers=workers, max_examples_per_shard=2)
        assert ids(out) == ["x", "y", "z", "new"]
        assert (report.accepted, report.rejected) == (4, 4)
        assert [(line["file"], line["row"], line["reason"]) for line in rejected(out)] == [
            ("a.parquet", 2, "the id 'x' is already used by row 0 of a.parquet"),
            ("b.parquet", 0, "the id 'y' is already used by row 1 of a.parquet"),
            ("b.parquet", 2, "the id 'z' is already used by row 3 of a.parquet"),
            ("b.parquet", 3, "the id 'new' is already used by row 1 of b.parquet"),
        ]
    assert content(tmp_path / "out1") == content(tmp_path / "out2")


def test_a_bad_first_row_does_not_take_the_id_from_a_good_one(tmp_path: Path) -> None:
    source = write(tmp_path / "x.parquet", [row("x", image=None), row("x"), row("x")])
    run(source, tmp_path / "out")
    assert ids(tmp_path / "out") == ["x"]
    assert [line["row"] for line in rejected(tmp_path / "out")] == [0, 2]


def test_a_unit_of_doubles_leaves_no_empty_shard(tmp_path: Path) -> None:
    source = write(tmp_path / "x.parquet", [row("x"), row("y"), row("x"), row("y"), row("z")], group=2)
    report = run(source, tmp_path / "out", max_examples_per_shard=2)
    assert ids(tmp_path / "out") == ["x", "y", "z"]
    assert [shard.file for shard in list_shards(tmp_path / "out")] == ["shard-000000.tar", "shard-000001.tar"]
    assert report.shards == 2


def test_no_id_is_in_two_splits(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write(source / "validation.parquet", [row("only"), row("both")])
    write(source / "train.parquet", [row("both"), row("other")])
    run(source, tmp_path / "out")
    assert ids(tmp_path / "out/train") == ["both", "other"]
    assert ids(tmp_path / "out/val") == ["only"]
    assert rejected(tmp_path / "out/val")[0]["reason"] == "the id 'both' is already used by the split 'train'"
    before = content(tmp_path / "out")
    for path in (tmp_path / "out/val").iterdir():
        path.unlink()
    run(source, tmp_path / "out")
    assert content(tmp_path / "out") == before


# --- parallel, resumable, atomic ---


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 rows of two files in row groups of 3; some are bad, some come again."""
    folder = tmp_path_factory.mktemp("source")
    rows = numbered(30)
    rows[7] |= {"image": None}
    rows[13] |= {"id": "row_2"}
    rows[22] |= {"id": "row_20"}
    write(folder / "a.parquet", rows[:17])
    write(folder / "b.parquet", rows[17:])
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The result of an import that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    report = run(source, out, max_examples_per_shard=3)
    assert (report.accepted, report.rejected, report.shards) == (27, 3, 11)
    return content(out)


def test_order_and_bytes_do_not_depend_on_workers(
    source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    run(source, tmp_path / "out", max_examples_per_shard=3, workers=2)
    assert content(tmp_path / "out") == whole
    assert ids(tmp_path / "out") == [f"row_{n}" for n in range(30) if n not in (7, 13, 22)]


def stop_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Make a function of the job, or of its folder, end the import, as Ctrl-C would, at its n-th call."""
    owner = next(owner for owner in (job, StagedFolder, staging) if hasattr(owner, name))
    real, calls = getattr(owner, name), iter(range(1, 1000))

    def stopping(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, stopping)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("_run_unit", 1),
        ("_run_unit", 5),
        ("_accept", 14),
        ("_decide", 1),
        ("_without", 1),
        ("begin", 1),
        ("finish", 1),
        ("publish", 1),
        ("write_atomically", 1),
        ("write_atomically", 2),
        ("write_atomically", 12),
        ("write_index", 1),
    ],
)
def test_stopped_anywhere_and_continued_is_the_same(
    source: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    call: int,
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_at(patch, name, call)
        with pytest.raises(KeyboardInterrupt):
            run(source, out, max_examples_per_shard=3)
    assert not (out / "index.json").exists()
    assert not run(source, out, max_examples_per_shard=3).already_done
    assert content(out) == whole


def test_stopped_between_moves_and_continued_is_the_same(
    source: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def stopping(old: Path, new: Path) -> None:
        if Path(new).name == "shard-000004.tar":
            raise KeyboardInterrupt
        real(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "out", max_examples_per_shard=3)
    assert (tmp_path / "out/shard-000003.tar").exists()
    run(source, tmp_path / "out", max_examples_per_shard=3)
    assert content(tmp_path / "out") == whole


def test_finished_units_are_kept_and_damaged_ones_made_again(
    source: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_at(patch, "_run_unit", 6)
        with pytest.raises(KeyboardInterrupt):
            run(source, out, max_examples_per_shard=3)
    damaged = out / job.STAGING / "unit-000001" / "shard-000000.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    (out / job.STAGING / "unit-000003" / "record.json").write_text("{")
    made: list[str] = []
    real = job._run_unit

    def noting(unit: job.Unit, *rest: Any) -> None:
        made.append(unit.name)
        real(unit, *rest)

    monkeypatch.setattr(job, "_run_unit", noting)
    run(source, out, max_examples_per_shard=3)
    assert made == [f"unit-{number:06d}" for number in (1, 3, 5, 6, 7, 8, 9, 10)]
    assert content(out) == whole


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in listed.stdout.split()]


def is_running(pid: int) -> bool:
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")


@pytest.mark.slow
def test_killed_import_leaves_no_process_and_goes_on(shared: Path, tmp_path: Path) -> None:
    source, out = shared / "data/v1g_real", tmp_path / "out"
    options = "workers=2, max_examples_per_shard=64, split='train'"
    code = f"""
from helpers.v1g_cases import import_v1g
if __name__ == "__main__":
    import_v1g({str(source)!r}, {str(out)!r}, {options})
"""
    script = tmp_path / "killed.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.DEVNULL)
    units = out / "train" / job.STAGING
    while process.poll() is None and len(list(units.glob("unit-??????"))) < 3:
        time.sleep(0.002)
    children = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "train/index.json").exists()
    assert children
    for _ in range(1000):
        if not any(map(is_running, children)):
            break
        time.sleep(0.01)
    assert not any(map(is_running, children))
    kept = {path.stat().st_ino for path in units.glob("unit-??????/shard-000000.tar")}
    assert len(kept) >= 3
    run(source, out, split="train", max_examples_per_shard=64)
    assert kept <= {path.stat().st_ino for path in out.glob("train/*.tar")}  # Moved, not made again.
    run(source, tmp_path / "whole", split="train", max_examples_per_shard=64)
    assert content(out) == content(tmp_path / "whole")


def test_error_in_a_worker_reaches_the_caller(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write(source / "a.parquet", numbered(6))
    bad = write(source / "b.parquet", numbered(6, "other"))
    sound = bad.read_bytes()
    bad.write_bytes(b"PAR1" + b"\xff" * 400 + sound[404:])
    with pytest.raises(ValueError, match=r"b\.parquet is damaged"):
        run(source, tmp_path / "out", workers=2, max_examples_per_shard=3)
    assert not (tmp_path / "out/index.json").exists()
    bad.write_bytes(sound)
    assert run(source, tmp_path / "out", max_examples_per_shard=3, overwrite=True).accepted == 12


# --- what OUT may hold ---


def test_finished_import_is_not_done_again_unless_asked(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert not run(small, out).already_done
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = run(small, out, progress=True)
    assert (again.already_done, again.accepted, again.rejected, again.shards) == (True, 4, 0, 1)
    assert "finished before: nothing to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert not run(small, out, overwrite=True).already_done
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} != before


def test_other_source_or_options_are_refused(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write(tmp_path / "other.parquet", numbered(5, "other"))
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_at(patch, "_run_unit", 1)
        with pytest.raises(KeyboardInterrupt):
            run(small, out)
    with pytest.raises(ValueError, match="unfinished import of another source"):
        run(other, out)
    with pytest.raises(ValueError, match=r"unfinished import .* by other options"):
        run(small, out, max_examples_per_shard=2)
    run(small, out)
    with pytest.raises(ValueError, match="finished import of another source"):
        run(other, out)
    assert ids(out)[0] == "row_0"
    run(other, out, overwrite=True)
    assert ids(out)[0] == "other_0"


def test_every_shard_has_its_own_sidecar_and_no_other_is_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for rows, shards in ((7, 3), (4, 2)):
        source = write(tmp_path / f"{rows}.parquet", numbered(rows, "row"))
        run(source, out, max_examples_per_shard=3, overwrite=True)
        infos = list_shards(out)
        assert [verify_shard(out, info) for info in infos] == [True] * shards
        sidecars = sorted(path.name for path in out.glob("*.safetensors"))
        assert sidecars == [sidecar_name(info.file) for info in infos]


def test_changed_source_is_another_source(small: Path, tmp_path: Path) -> None:
    run(small, tmp_path / "out")
    write(small, numbered(4, "changed"))
    with pytest.raises(ValueError, match="another source"):
        run(small, tmp_path / "out")


def test_folder_of_other_things_is_left_alone(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.txt").write_text("all of it")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="not empty and holds no import"):
            run(small, out, overwrite=overwrite)
    with pytest.raises(ValueError, match="is a file"):
        run(small, out / "thesis.txt")
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_overwriting_goes_on_after_it_was_stopped(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(small, out)
    (out / "index.json").unlink()  # as if stopped while clearing
    with pytest.raises(ValueError, match="not empty"):
        run(small, out)
    assert run(small, out, overwrite=True).accepted == 4
    assert len(ids(out)) == 4
