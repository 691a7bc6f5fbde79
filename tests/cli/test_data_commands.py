"""`v1lit data index | check | reshard` from end to end: results, exit codes, mistakes, Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from helpers.refusals import assert_refused
from helpers.rows import picture, write_rows
from helpers.shard_cases import make, members_of, tar, write
from pyarrow import parquet

from v1lit.cli.data import COMMANDS, USAGE
from v1lit.cli.main import main
from v1lit.data.shards import Shard, ShardWriter, list_shards, sidecar_name

pytestmark = pytest.mark.dependencies

FIRST, SECOND = "shard-000000.tar", "shard-000001.tar"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards with a, b and c, d."""
    return write(tmp_path / "shards", ["a", "b", "c", "d"], max_examples=2)


def data(*arguments: object) -> int:
    return main(["data", *map(str, arguments)])


def quiet(*arguments: object) -> int:
    return data(*arguments, "--no-progress", "--workers", 1)


@pytest.mark.parametrize("command", ["index", "check", "reshard"])
def test_commands_explain_themselves(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        data(command, "--help")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"v1lit data {command}" in out
    assert "--workers" in out


def test_all_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert data() == 2
    assert data("--help") == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n  {command} " in USAGE
        assert f"\n  {command} " in out


def test_foreign_shards_are_indexed_checked_and_resharded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign, out = tmp_path / "foreign", tmp_path / "out"
    for number in range(3):
        members = [member for name in "xyz" for member in members_of(f"{name}{number}")]
        tar(foreign / f"part-{number}.tar", members)
    assert quiet("index", foreign) == 0
    assert f"{foreign}: 3 shards, 9 examples, " in capsys.readouterr().out
    assert quiet("check", foreign) == 0
    assert capsys.readouterr().out.startswith("nothing is wrong: 3 shards, 9 examples, 9 images decoded")
    assert quiet("reshard", foreign, "--out", out, "--shuffle", 1, "--examples-per-shard", 4) == 0
    assert f"{out}: 3 shards, 9 examples, " in capsys.readouterr().out
    assert [info.examples for info in list_shards(out)] == [4, 4, 1]
    assert quiet("check", out) == 0


# --- index ---


def test_an_index_can_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "index.json").unlink()
    before = sorted(path.name for path in folder.iterdir())
    assert quiet("index", folder / "shard-*.tar", "--out", tmp_path / "index") == 0
    assert sorted(path.name for path in folder.iterdir()) == before
    assert quiet("check", tmp_path / "index") == 0


def test_problems_of_indexed_shards_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar(tmp_path / "in" / "a.tar", [*members_of("a"), ("bad.json", b"{")])
    assert quiet("index", tmp_path / "in") == 0
    out = capsys.readouterr().out
    assert "2 examples" in out
    assert "1 invalid" in out
    assert "'bad'" in out
    assert "v1lit data check" in out


def test_shards_of_nothing_usable_fail_with_the_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar(tmp_path / "in" / "a.tar", [("a.json", b"{"), ("b.json", b"{}"), ("c.json", b"{")])
    assert quiet("index", tmp_path / "in") == 1
    assert "not one of the 3 examples can be used: 2 x not JSON" in capsys.readouterr().err
    assert quiet("index", tmp_path / "in") == 1, "known from its sidecar"
    assert quiet("reshard", tmp_path / "in", "--out", tmp_path / "out", "--on-bad", "skip") == 1
    assert "not one example could be used: 2 x not JSON" in capsys.readouterr().err
    assert quiet("check", tmp_path / "in") == 1


def test_lengths_of_nothing_that_fits_fail_with_the_reason(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quiet("index", folder, "--lengths", "tiny_qwen", "--data.encoding.max_tokens=9") == 1
    assert "not one of 4 examples can be used; of the first ones" in (err := capsys.readouterr().err)
    assert "that may hold 9; raise data.encoding.max_tokens" in err


# --- import ---


def rows(path: Path, ids: list[object], **changes: object) -> Path:
    """Rows in the published format."""
    example = make("x")
    (image,), (ask, say) = example.images, example.messages
    row = {
        "image": {"bytes": image.data, "path": None},
        "conversations": [{"from": "human", "value": ask.content}, {"from": "gpt", "value": say.content}],
        "regions": json.dumps({name: region.to_json() for name, region in example.regions.items()}),
        "image_size": list(image.size),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist([row | {"id": id} | changes for id in ids]), path)
    return path


def test_an_import_of_nothing_usable_fails_with_the_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = rows(tmp_path / "rows.parquet", [7, 8, 9])
    for _ in ("first", "again, when nothing is left to do"):
        assert quiet("import", "v1g", source, "--out", tmp_path / "out", "--workers", 1) == 1
        err = capsys.readouterr().err
        assert f"no row came to {tmp_path / 'out'}: 3 x the id is 7, of type int; an id is text" in err
    assert data("import", "v1g", str(source), "--out", str(tmp_path / "shown"), "--workers", "1") == 1
    err = capsys.readouterr().err
    assert "0 examples, 3 rejected, 0 shards\n  3 x the id is 7" in err
    assert "listed in" in err


def test_one_split_of_nothing_usable_is_a_failure_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(tmp_path / "in/train-0.parquet", ["a", "b"], image_size="[40, 32]")
    rows(tmp_path / "in/val-0.parquet", ["c"])
    assert quiet("import", "v1g", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1) == 1
    err = capsys.readouterr().err
    assert f"no row came to {tmp_path / 'out/train'}: 2 x image_size is '[40, 32]', of type str" in err


def box_rows(folder: Path, written: str) -> Path:
    """A row of LLaVA's, with a picture of 60 x 40 and a box as written."""
    turns = [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": written}]
    picture(folder)
    return write_rows(folder / "rows.json", [{"id": 1, "image": "wide.jpg", "conversations": turns}])


def test_what_boxes_are_is_said_on_the_command_line(tmp_path: Path) -> None:
    source = box_rows(tmp_path / "in", "[100, 100, 200, 200]")
    command = ["import", "llava", source, "--out", tmp_path / "out", "--workers", 1]
    assert quiet(*command) == 1
    assert quiet(*command, "--overwrite", "--box-unit", "pixels", "--box-of", "resized") == 2
    size = ["--box-size", 300, 400]
    assert quiet(*command, "--overwrite", "--box-unit", "pixels", "--box-of", "resized", *size) == 0
    with Shard(tmp_path / "out/shard-000000.tar") as shard:
        assert shard.example(0).regions["<|region_1|>"].box == (20, 10, 40, 20)


def test_images_can_be_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = box_rows(tmp_path / "in", "Nowhere.")
    (tmp_path / "in/wide.jpg").rename(tmp_path / "wide.jpg")
    command = ["import", "llava", source, "--out", tmp_path / "out", "--workers", 1]
    assert quiet(*command) == 1
    assert "'wide.jpg' cannot be read in" in capsys.readouterr().err
    assert quiet(*command, "--images", tmp_path) == 2, "other images give another import"
    assert "by other options" in capsys.readouterr().err
    assert quiet(*command, "--overwrite", "--images", tmp_path) == 0


def test_rows_are_shown_before_their_import(tmp_path: Path) -> None:
    source, page = box_rows(tmp_path / "in", "[0.2, 0.4, 0.4, 0.6]"), tmp_path / "page.html"
    shown = ["show", source, "--format", "llava", "--backbone", "none", "--out", page]
    assert data(*map(str, shown)) == 0
    assert "<img" in page.read_text()
    assert "1#0" in page.read_text()
    assert data(*map(str, shown), "--box-of", "original", "--box-unit", "0-100") == 0
    assert data(*map(str, shown), "--images", str(tmp_path)) == 0
    assert "row 0 of rows.json: the image &#x27;wide.jpg&#x27; cannot be read" in page.read_text()


def test_an_unknown_format_is_named_with_those_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quiet("import", "coc", tmp_path, "--out", tmp_path / "out") == 2
    assert "unknown format 'coc'; did you mean 'coco'? allowed: coco, llava" in capsys.readouterr().err


def test_rows_that_are_rejected_beside_good_ones_are_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = rows(tmp_path / "rows.parquet", ["a", "", "a"])
    assert data("import", "v1g", str(source), "--out", str(tmp_path / "out"), "--workers", "1") == 0
    err = capsys.readouterr().err
    assert "1 examples, 2 rejected" in err
    assert "1 x the row has no id" in err
    assert "1 x the id 'a' is already used" in err


def test_lengths_are_measured_with_a_recipe_and_its_changes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = []
    for most in (77, 60):
        assert quiet("index", folder, "--lengths", "tiny_qwen", f"--data.encoding.max_tokens={most}") == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.endswith("lengths in tokens")
        tables.append(last.partition(":")[0])
    assert sorted(folder.glob("lengths-*.safetensors")) == sorted(map(Path, tables))
    assert len(set(tables)) == 2, "lengths of one encoding are not those of another"


# --- check ---


def test_what_is_wrong_is_told_in_lines_a_table_and_a_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / sidecar_name(FIRST)).unlink()
    data_of = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(data_of.replace(b"Where?", b"Where!"))
    assert quiet("check", folder, "--out", tmp_path / "problems.jsonl") == 1
    out = capsys.readouterr().out
    assert f"{folder / FIRST}: its index" in out
    assert f"{folder / SECOND}, example 'c': was changed" in out
    assert "`v1lit data index`" in out
    assert "other bytes than the index says" in " ".join(out.split())
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "problems.jsonl").read_text().splitlines()]
    assert kinds == ["index", "checksum", "checksum", "checksum"]
    assert "nothing is wrong" not in out


def test_of_many_problems_the_rest_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [f"id{number}" for number in range(30)]
    assert quiet("check", write(tmp_path / "a", ids), write(tmp_path / "b", ids)) == 1
    out = capsys.readouterr().out
    assert out.count("the same id is") == 20
    assert "10 more: --out FILE" in out
    assert "30 problems" in out


def test_a_missing_index_is_said_but_nothing_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "index.json").unlink()
    assert quiet("check", folder, "--no-decode") == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    assert "4 images," in printed.out
    assert f"{folder} has no index" in printed.err
    assert f"`v1lit data index {folder}`" in printed.err


# --- reshard ---


def test_bad_data_stops_a_reshard_unless_it_is_skipped(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / SECOND).unlink()
    assert quiet("reshard", folder, "--out", tmp_path / "out") == 1
    err = capsys.readouterr().err
    assert SECOND in err
    assert "--on-bad skip" in err
    assert quiet("reshard", folder, "--out", tmp_path / "out", "--on-bad", "skip") == 0
    out = capsys.readouterr().out
    assert "skipped: 1 missing" in out
    assert str(tmp_path / "out" / "skipped.jsonl") in out


# --- mistakes ---

MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "no command": (["chek"], ["'chek'", "did you mean 'check'", "reshard"]),
    "nothing to check": (["check"], ["location"]),
    "missing folder to check": (["check", "nowhere"], ["nowhere"]),
    "empty folder to check": (["check", "empty"], ["empty holds no shards"]),
    "unknown option of check": (["check", "shards", "--decod"], ["'--decod'", "did you mean '--no-decode'"]),
    "no processes for check": (["check", "shards", "--workers", "0"], ["workers is 0", "at least 1"]),
    "half a process": (["check", "shards", "--workers", "0.5"], ["--workers", "'0.5'"]),
    "findings to a folder": (["check", "shards", "--out", "empty"], ["empty is a folder"]),
    "missing folder to index": (["index", "nowhere"], ["nowhere"]),
    "empty folder to index": (["index", "empty"], ["empty holds no shards"]),
    "no processes for index": (["index", "shards", "--workers", "0"], ["workers is 0"]),
    "unknown option of index": (["index", "shards", "--ou=x"], ["'--ou'", "did you mean '--out'"]),
    "a change without a recipe": (["index", "shards", "--data.encoding.max_tokens=9"], ["--data.encoding"]),
    "unknown recipe": (["index", "shards", "--lengths", "tiny_qwenn"], ["did you mean 'tiny_qwen'"]),
    "no output": (["reshard", "shards"], ["--out"]),
    "missing folder to reshard": (["reshard", "nowhere", "--out", "out"], ["nowhere"]),
    "output not empty": (["reshard", "shards", "--out", "full"], ["full is not empty", "notes.txt"]),
    "output is the input": (["reshard", "shards", "--out", "shards"], ["shards is not empty"]),
    "output is a file": (["reshard", "shards", "--out", "full/notes.txt"], ["is a file"]),
    "no processes for reshard": (["reshard", "shards", "--out", "out", "--workers", "0"], ["workers is 0"]),
    "negative seed": (["reshard", "shards", "--out", "out", "--shuffle=-1"], ["shuffle is -1"]),
    "shuffle without a seed": (["reshard", "shards", "--out", "out", "--shuffle"], ["--shuffle"]),
    "no examples per shard": (
        ["reshard", "shards", "--out", "out", "--examples-per-shard", "0"],
        ["examples_per_shard is 0"],
    ),
    "no bytes per shard": (
        ["reshard", "shards", "--out", "out", "--max-shard-mb", "0"],
        ["max_shard_mb is 0"],
    ),
    "unknown way with bad data": (
        ["reshard", "shards", "--out", "out", "--on-bad", "ignore"],
        ["'ignore'", "stop, skip"],
    ),
    "unknown option of reshard": (
        ["reshard", "shards", "--out", "out", "--shufle", "1"],
        ["'--shufle'", "did you mean '--shuffle'"],
    ),
    "the same shards twice": (["reshard", "shards", "copy", "--out", "out"], ["'a' occurs twice"]),
    "unknown scheme": (["check", "ftp://host/a.tar"], ["ftp://"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_two_lines_and_leaves_nothing(
    mistake: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, words = MISTAKES[mistake]
    root = folder.parent
    monkeypatch.chdir(root)
    (root / "empty").mkdir()
    (root / "full").mkdir()
    (root / "full" / "notes.txt").write_text("mine")
    shutil.copytree(folder, root / "copy")
    assert_refused(arguments, words, root, capfd)


# --- Ctrl-C ---


def many_examples(folder: Path) -> Path:
    example = make("x", images=0)
    record = json.loads(example.to_members()["json"])
    with ShardWriter(folder, max_examples=100) as writer:
        for number in range(600):
            writer.write_members(f"{number}", {"json": json.dumps({**record, "id": f"{number}"}).encode()})
    from v1lit.data.shards import write_index

    write_index(folder, writer.shards)
    return folder


def interrupted(arguments: list[object], begun: Callable[[], bool]) -> subprocess.CompletedProcess[str]:
    """Press Ctrl-C, which reaches all processes of the command, as soon as it has begun to work."""
    command = [sys.executable, "-m", "v1lit.cli.main", "data", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not begun() and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=200)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_no_output_that_reads_as_complete(tmp_path: Path, workers: int) -> None:
    inputs, out = many_examples(tmp_path / "in"), tmp_path / "out"
    arguments = ["reshard", inputs, "--out", out, "--shuffle", 1, "--examples-per-shard", 1]
    arguments += ["--workers", workers, "--no-progress"]
    shards = out / ".reshard" / "shards"
    done = interrupted(arguments, begun=lambda: shards.is_dir() and any(shards.glob("0*")))
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines() == [
        f"{out} is not complete; the same command resumes it",
        "stopped by Ctrl-C",
    ]
    assert [path.name for path in out.iterdir()] == [".reshard"]
    assert main(["data", "check", str(out), "--no-progress"]) == 2, "there is nothing to be read"
    kept = {path.name for path in shards.glob("0*")}
    assert kept
    assert quiet(*arguments[:-3]) == 0
    assert (
        quiet("reshard", inputs, "--out", tmp_path / "whole", "--shuffle", 1, "--examples-per-shard", 1) == 0
    )
    assert (out / "index.json").read_bytes() == (tmp_path / "whole" / "index.json").read_bytes()
    assert not (out / ".reshard").exists()


def test_ctrl_c_leaves_no_half_of_a_list_of_findings(tmp_path: Path) -> None:
    inputs, out = many_examples(tmp_path / "in"), tmp_path / "found" / "problems.jsonl"
    arguments = ["check", *[inputs] * 1, "--out", out, "--workers", 2, "--no-progress"]
    done = interrupted(arguments, begun=out.parent.is_dir)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines() == ["stopped by Ctrl-C"]
    assert not list(out.parent.iterdir())


def test_paths_that_no_shell_expands_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "a home [1]", tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("DATA", str(home / "shards"))
    monkeypatch.chdir(here)
    assert quiet("synth", "--examples=3", "--out=~/shards/train") == 0
    assert quiet("check", "~/shards/train", "${DATA}/train/*.tar", "--out=~/found.jsonl") == 0
    assert quiet("index", "$DATA/train", "--out=~/shards/train") == 0
    assert quiet("reshard", "~/shards/train", "--out=$DATA/again") == 0
    assert data("show", "~/shards", "--out=~/page.html", "--backbone=none") == 0
    mixture = "[{shards: ~/shards/train}, {shards: $DATA/again}]"
    assert data("mix", "tiny_qwen", f"--data.source.mixture={mixture}") == 0
    assert {"shards", "found.jsonl", "page.html"} <= {path.name for path in home.iterdir()}
    assert not list(here.iterdir())


def test_a_variable_that_is_not_set_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert quiet("check", "$NO_SUCH_PLACE/train") == 2
    assert "NO_SUCH_PLACE is not set" in capsys.readouterr().err
