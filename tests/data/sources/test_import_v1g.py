"""The importer accepts what is good, names what is bad, and leaves the same result when it was killed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from v1lit.backbones import BackboneConfig
from v1lit.backbones.processor import load_processor
from v1lit.data.config import EncodingConfig, SourceConfig
from v1lit.data.encode.encoding import EncodingError, encode
from v1lit.data.example import Example, ExampleError, Message
from v1lit.data.example.marks import words_of
from v1lit.data.loading.dataset import ShardDataset
from v1lit.data.shards import Shard, list_shards, read_index, sidecar_name, verify_shard
from v1lit.data.sources import import_job as job
from v1lit.data.sources import v1g
from v1lit.data.sources.parquet_files import find_source
from v1lit.data.sources.registry import get_importer, prepare_source
from v1lit.data.sources.v1g import import_v1g, row_to_example
from v1lit.grounding.region import Region

pytestmark = pytest.mark.dependencies

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))),
        ("regions", pa.string()),
        ("image_size", pa.list_(pa.int64())),
        ("num_tokens", pa.int64()),
    ]
)


def jpeg(width: int = 60, height: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 90, 40)).save(buffer, "JPEG")
    return buffer.getvalue()


PHOTO = jpeg()


def row(id: str | None, **changes: Any) -> dict[str, Any]:
    gpt = '<think> detect(query="it", objects=["<obj1><|region_1|>"]) </think><answer>yes</answer>'
    fields: dict[str, Any] = {
        "id": id,
        "image": {"bytes": PHOTO, "path": "x.jpg"},
        "conversations": [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": gpt}],
        "regions": '{"<|region_1|>": [1, 2, 30, 40]}',
        "image_size": [60, 40],
        "num_tokens": 100,
    }
    return fields | changes


def write(path: Path, rows: list[dict[str, Any]], group: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows, SCHEMA), path, row_group_size=group)
    return path


def numbered(count: int, prefix: str = "row") -> list[dict[str, Any]]:
    return [row(f"{prefix}_{number}") for number in range(count)]


def run(source: Path | str, out: Path, **options: Any) -> v1g.ImportReport:
    return import_v1g(source, out, **({"workers": 1, "progress": False} | options))


def rejected(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]


def examples(folder: Path) -> list[Example]:
    return list(ShardDataset(folder, shuffle=False))


def ids(folder: Path) -> list[str]:
    return [example.id for example in examples(folder)]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- rows ---

NAMED_DEFECT = {
    "truncated_jpeg": "cut off",
    "zero_byte_image": "no bytes",
    "image_is_null": "image is missing",
    "region_not_in_text": "<|region_3|> is given, but the text never names it",
    "text_names_missing_region": "names <|region_4|>, but no such region",
    "box_outside_image": "outside of its image of 640 x 480",
    "inverted_box": "[633, 144, 491, 21]",
    "nan_in_box": "<|region_1|>: a coordinate is a finite number of pixels, got nan",
    "strings_in_box": "'17'",
    "three_numbers_in_box": "[375, 348, 471]",
    "regions_not_json": "not JSON",
    "three_turns": "3 turns instead of two",
    "wrong_roles": "'user' and 'assistant' instead of 'human' and 'gpt'",
    "missing_image_prefix": "does not begin with <image>",
    "image_size_disagrees": "[1280, 960], but the image is displayed with [640, 480]",
    "decompression_bomb_png": "too many pixels",
    "empty_gpt_text": "gpt turn has no text",
    "duplicate_id_second": "'broken_duplicate' is already used by row 24 of broken.parquet",
}


LEFT_TO_BACKBONES = ("one_by_one_image", "aspect_1x4000")
"""What only some backbones refuse, when they encode it."""


def test_every_broken_row_is_treated_as_expected(shared: Path, tmp_path: Path) -> None:
    source = shared / "data/v1g_real/broken.parquet"
    rows = parquet.read_table(source).to_pylist()
    report = run(source, tmp_path / "out")
    lines = {line["row"]: line for line in rejected(tmp_path / "out")}
    for expected in rows:
        if expected["defect"] in LEFT_TO_BACKBONES:
            expected["expect"] = "accept"
    for number, expected in enumerate(rows):
        assert (number in lines) == (expected["expect"] == "reject"), expected["defect"]
        if number in lines:
            assert lines[number]["id"] == expected["id"]
            assert lines[number]["file"] == "broken.parquet"
            assert NAMED_DEFECT[expected["defect"]] in lines[number]["reason"]
    good = [expected for expected in rows if expected["expect"] == "accept"]
    assert (report.accepted, report.rejected) == (len(good), len(rows) - len(good))
    for example, expected in zip(examples(tmp_path / "out"), good, strict=True):
        assert_is_row(example, expected, "broken.parquet")


@pytest.mark.parametrize(("family", "refused"), [("qwen2_5_vl", True), ("internvl", False)])
def test_what_only_some_backbones_refuse_is_imported_and_named_when_it_is_encoded(
    family: str, refused: bool, tmp_path: Path
) -> None:
    rows = numbered(2)
    for row, size in zip(rows, [(4000, 10), (20, 10)], strict=True):
        row |= {"image": {"bytes": jpeg(*size), "path": None}, "image_size": list(size)}
        row["regions"] = json.dumps({name: [1, 1, 9, 9] for name in json.loads(row["regions"])})
    run(write(tmp_path / "rows.parquet", rows), tmp_path / "out")
    narrow, small = examples(tmp_path / "out")
    processor, config = load_processor(BackboneConfig(family)), EncodingConfig(coordinates=False)
    assert encode(small, processor, config).patch_maps[0].image_size == (20, 10)
    if refused:
        with pytest.raises(EncodingError, match=r"image 0 .* 'row_0': .* 4000x10 pixels is too narrow"):
            encode(narrow, processor, config)
    else:
        assert encode(narrow, processor, config).patch_maps[0].image_size == (4000, 10)


def assert_is_row(example: Example, expected: dict[str, Any], file: str) -> None:
    human, gpt = (turn["value"] for turn in expected["conversations"])
    assert example.id == expected["id"]
    assert example.images[0].data == expected["image"]["bytes"]
    assert example.images[0].size == tuple(expected["image_size"])
    assert example.messages == (Message("user", human), Message("assistant", gpt))
    assert example.regions == {k: Region.from_box(v) for k, v in json.loads(expected["regions"]).items()}
    assert example.answer == gpt.split("<answer>")[1].split("</answer>")[0]
    assert example.source == f"v1g:{file}"


def test_real_rows_arrive_whole_in_a_folder_per_split(shared: Path, tmp_path: Path) -> None:
    source = shared / "data/v1g_real"
    report = run(source, tmp_path)
    assert {name: (part.accepted, part.rejected) for name, part in report.splits.items()} == {
        "train": (1405, 0),
        "val": (176, 0),
    }
    assert (report.accepted, report.rejected, report.ignored) == (1581, 0, ("broken.parquet",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train", "val"]
    rows = parquet.read_table(source / "val-00000-of-00001.parquet").to_pylist()
    for example, expected in zip(examples(tmp_path / "val"), rows, strict=True):
        assert_is_row(example, expected, "val-00000-of-00001.parquet")
    for split in report.splits:
        assert all(verify_shard(tmp_path / split, shard) for shard in list_shards(tmp_path / split))


def says(gpt: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": gpt}]


CALL = 'detect(query="it", objects=["<obj1><|region_1|>"])'


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, "no id"),
        ({"id": ""}, "no id"),
        ({"image": {"bytes": None, "path": "x.jpg"}}, "image is missing"),
        ({"image": {"bytes": b"GIF89a", "path": None}}, "not a readable JPEG"),
        ({"id": 7}, "the id is 7, of type int; an id is text"),
        ({"image_size": None}, "image_size is None, of type NoneType; it must be a list"),
        ({"image_size": "[60, 40]"}, r"image_size is '\[60, 40\]', of type str; it must be a list"),
        ({"image_size": ["60", "40"]}, r"says \['60', '40'\], .* displayed with \[60, 40\]"),
        ({"regions": {"<|region_1|>": [1, 2, 3, 4]}}, "regions is of type dict; it must be a JSON object"),
        ({"image": {"bytes": None, "path": "x.jpg"}}, "its path 'x.jpg' is not followed"),
        ({"image_size": [40, 60]}, r"image_size says \[40, 60\]"),
        ({"conversations": None}, "conversations must be a list"),
        ({"conversations": []}, "0 turns instead of two"),
        ({"conversations": says("")}, "gpt turn has no text"),
        (
            {"conversations": [{"from": "human", "value": None}, says(CALL)[1]]},
            "human turn does not begin .* but with None",
        ),
        ({"conversations": says(f"{CALL} <|region_2|>")}, r"names <\|region_2\|>, .* given: <\|region_1\|>"),
        ({"conversations": says("see <|region_1|>")}, "outside of any well-formed detect"),
        (
            {"conversations": says('detect(query="it", objects=<|region_1|>')},
            r"outside of any well-formed detect.*; expected objects=\[ after the query: 'detect",
        ),
        ({"regions": None}, "regions is missing"),
        ({"regions": "[]"}, "must be a JSON object, not list"),
        ({"regions": "[" * 100_000}, "nested too deeply"),
        ({"regions": '{"<|region_1|>": [1, 2, 3, 4], "<|region_1|>": [1, 2, 3, 4]}'}, "given twice"),
        ({"regions": '{"<|region_1|>": [0, 0, 1e999, 4]}'}, "finite"),
        ({"regions": '{"<|region_1|>": [true, 0, 3, 4]}'}, "got True"),
        ({"regions": '{"<|region_1|>": [-1, 0, 3, 4]}'}, "outside of its image"),
    ],
)
def test_defects_of_a_row_are_named(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExampleError, match=reason):
        row_to_example(row("a") | changes)


@pytest.mark.parametrize(
    ("gpt", "answer"),
    [
        (f"{CALL}<answer> two\nlines </answer>", "two\nlines"),
        (f"<answer>no</answer> wait, {CALL} <answer>yes</answer>", "yes"),
        (CALL, None),
        (f"{CALL}<answer>open", None),
    ],
)
def test_answer_is_taken_from_its_tags(gpt: str, answer: str | None) -> None:
    assert row_to_example(row("a", conversations=says(gpt))).answer == answer


def test_further_image_marks_are_words() -> None:
    question, reply = "What is <image>, what <\\image>?", f"![fig](<image>) <\\|region_1|> {CALL}"
    turns = [{"from": "human", "value": f"<image>\n{question}"}, says(reply)[1]]
    example = row_to_example(row("a", conversations=turns))
    assert [words_of(message.content) for message in example.messages] == [question, reply]
    assert example.messages[0].content.startswith("<image>\nWhat")
    assert CALL in example.messages[1].content


def test_row_of_broken_text_is_rejected_alone(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(numbered(3), SCHEMA)
    bad = pa.Array.from_buffers(
        pa.string(),
        3,
        [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0\5\0\0\0"), pa.py_buffer(b"a\xff\xfebc")],
    )
    parquet.write_table(table.set_column(3, "regions", bad), tmp_path / "x.parquet")
    run(tmp_path / "x.parquet", tmp_path / "out")
    reasons = {line["id"]: line["reason"] for line in rejected(tmp_path / "out")}
    assert reasons["row_1"] == "regions holds bytes that are not UTF-8 text"
    assert set(reasons) == {"row_0", "row_1", "row_2"}


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
    """Make a function of the job end the import, as Ctrl-C would, at its n-th call."""
    real, calls = getattr(job, name), iter(range(1, 1000))

    def stopping(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(job, name, stopping)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("_run_unit", 1),
        ("_run_unit", 5),
        ("_accept", 14),
        ("_decide", 1),
        ("_without", 1),
        ("_publish", 1),
        ("write_atomically", 1),
        ("write_atomically", 2),
        ("write_atomically", 3),
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
        patch.setattr(job.os, "replace", stopping)
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
from v1lit.data.sources.v1g import import_v1g
if __name__ == "__main__":
    import_v1g({str(source)!r}, {str(out)!r}, {options})
"""
    script = tmp_path / "killed.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.DEVNULL)
    staging = out / "train" / job.STAGING
    while process.poll() is None and len(list(staging.glob("unit-??????"))) < 3:
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
    kept = {path.stat().st_ino for path in staging.glob("unit-??????/shard-000000.tar")}
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


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "small.parquet", numbered(4))


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


# --- sources ---


def splits_of(folder: Path, split: str | None = None) -> dict[str | None, list[str]]:
    found = find_source(folder, split)
    return {name: [found.name(path) for path in paths] for name, paths in found.splits.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x.parquet", "broken.parquet"], {None: ["x.parquet"]}),
        (["0000.parquet", "0001.parquet"], {None: ["0000.parquet", "0001.parquet"]}),
        (["data-00000-of-00002.parquet"], {None: ["data-00000-of-00002.parquet"]}),
        (["trainer.parquet"], {None: ["trainer.parquet"]}),
        (
            ["validation-00000-of-00001.parquet", "train-00000-of-00001.parquet", "broken.parquet"],
            {"train": ["train-00000-of-00001.parquet"], "val": ["validation-00000-of-00001.parquet"]},
        ),
        (
            ["test/0000.parquet", "train/0000.parquet"],
            {"train": ["train/0000.parquet"], "test": ["test/0000.parquet"]},
        ),
        (
            ["data/hard-00000-of-00001.parquet", "data/dev_2.parquet"],
            {"val": ["data/dev_2.parquet"], "hard": ["data/hard-00000-of-00001.parquet"]},
        ),
        ([".cache/train.parquet", "Train.parquet"], {"train": ["Train.parquet"]}),
    ],
)
def test_splits_follow_from_names(folder: Path, names: list[str], expected: dict) -> None:
    touch(folder, *names)
    assert splits_of(folder) == expected
    assert list(splits_of(folder)) == list(expected)  # train first


@pytest.mark.parametrize(
    "data_files",
    [
        "[{split: train, path: 'p*.parquet'}, {split: validation, path: [q.parquet]}]",
        "{train: 'p*.parquet', validation: q.parquet}",
    ],
)
def test_splits_follow_from_the_front_matter(folder: Path, data_files: str) -> None:
    touch(folder, "p1.parquet", "p2.parquet", "q.parquet", "train-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- {{config_name: other, data_files: x}}\n"
        f"- config_name: default\n  data_files: {data_files}\n---\n# x"
    )
    assert splits_of(folder) == {"train": ["p1.parquet", "p2.parquet"], "val": ["q.parquet"]}
    assert splits_of(folder, "validation") == splits_of(folder, "dev") == {"val": ["q.parquet"]}
    assert find_source(folder).ignored == ("train-00000-of-00001.parquet",)
    with pytest.raises(ValueError, match="has no split 'test'; it has: train, val"):
        find_source(folder, "test")


@pytest.mark.parametrize(
    "text", ["", "# no front matter", "---\nlicense: mit\n---\n", "---\nconfigs: 3\n---\n"]
)
def test_readme_without_splits_does_not_matter(folder: Path, text: str) -> None:
    touch(folder, "train.parquet")
    (folder / "README.md").write_text(text)
    assert splits_of(folder) == {"train": ["train.parquet"]}


@pytest.mark.parametrize(
    ("front", "reason"),
    [
        ("configs: [{data_files: '../*.parquet'}]", "leaves the folder"),
        ("configs: [{data_files: '/etc/*'}]", "leaves the folder"),
        ("configs: [{data_files: {'../x': 'a.parquet'}}]", "no usable name of a split"),
        (
            "configs: [{config_name: a, data_files: x}, {config_name: b, data_files: y}]",
            r"several datasets \(a, b\)",
        ),
        ("configs: [", "front matter is not YAML"),
    ],
)
def test_odd_front_matter_is_refused(folder: Path, front: str, reason: str) -> None:
    touch(folder, "a.parquet")
    (folder / "README.md").write_text(f"---\n{front}\n---\n")
    with pytest.raises(ValueError, match=reason):
        find_source(folder)


def test_sources_that_hold_nothing_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no parquet files"):
        run(folder, tmp_path / "out")
    with pytest.raises(ValueError, match="no such file or folder"):
        run(tmp_path / "missing", tmp_path / "out")
    touch(folder, "x.parquet")
    with pytest.raises(ValueError, match="the option split='val' is for folders"):
        run(folder / "x.parquet", tmp_path / "out", split="val")
    with pytest.raises(ValueError, match="is not a readable parquet file"):
        run(folder / "x.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_parquet_files_are_refused_before_any_work(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(numbered(1), SCHEMA)
    parquet.write_table(table.drop_columns(["regions"]), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="not in the v1g format: no column regions; it has"):
        run(tmp_path / "x.parquet", tmp_path / "out")
    flat = table.set_column(1, "image", pa.array([PHOTO]))
    parquet.write_table(flat, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="image must be a struct of bytes and path, it is binary"):
        run(tmp_path / "x.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_split_option_imports_one_split(folder: Path, tmp_path: Path) -> None:
    write(folder / "train.parquet", numbered(2))
    write(folder / "val.parquet", numbered(3, "val"))
    assert list(run(folder, tmp_path / "out", split="validation").splits) == ["val"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["val"]
    assert run(folder, tmp_path / "out").accepted == 5


def test_folder_without_splits_goes_directly_to_out(folder: Path, tmp_path: Path) -> None:
    write(folder / "one.parquet", numbered(2))
    write(folder / "two.parquet", numbered(2, "two"))
    report = run(folder, tmp_path / "out")
    assert (report.accepted, report.splits) == (4, {})
    assert read_index(tmp_path / "out")["examples"] == 4


def test_splits_do_not_go_into_a_folder_of_shards(folder: Path, small: Path, tmp_path: Path) -> None:
    run(small, tmp_path / "out")
    write(folder / "train.parquet", numbered(2))
    with pytest.raises(ValueError, match="is itself a folder of shards"):
        run(folder, tmp_path / "out")


def test_hub_id_is_downloaded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    write(folder / "data/train-00000-of-00001.parquet", numbered(2))
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert list(run("owner/name", tmp_path / "out").splits) == ["train"]
    assert (asked["name"], asked["repo_type"]) == ("owner/name", "dataset")
    assert "*.parquet" in asked["allow_patterns"]


def test_hub_data_that_cannot_be_had_names_the_local_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def snapshot_download(name: str, **options: Any) -> str:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(
        ValueError, match=r"owner/name is no local file .*no network.*give their folder as SOURCE"
    ) as error:
        run("owner/name", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_wrong_numbers_are_refused(small: Path, tmp_path: Path) -> None:
    for options in ({"workers": 0}, {"max_examples_per_shard": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            run(small, tmp_path / "out", **options)


def test_large_row_groups_become_several_shards(tmp_path: Path) -> None:
    source = write(tmp_path / "x.parquet", numbered(10), group=10)
    assert run(source, tmp_path / "out", max_examples_per_shard=4).shards == 3
    with Shard(tmp_path / "out/shard-000002.tar") as shard:
        assert shard.keys == ["row_8", "row_9"]


def test_empty_file_gives_an_empty_import(tmp_path: Path) -> None:
    report = run(write(tmp_path / "x.parquet", []), tmp_path / "out")
    assert (report.accepted, report.rejected, report.shards) == (0, 0, 0)
    assert read_index(tmp_path / "out")["examples"] == 0
    assert report.failed == f"no row came to {tmp_path / 'out'}: there are no rows"


def test_a_source_of_nothing_usable_is_a_mistake_in_the_recipe(tmp_path: Path) -> None:
    write(tmp_path / "in/train-0.parquet", [row("", image_size=[1, 1])])
    config = SourceConfig(name="v1g", path=str(tmp_path / "in"), folder=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"data\.source\.path .* could not be imported: no row .* has no id"):
        prepare_source(config)


# --- house ---


def test_importers_are_found_by_name() -> None:
    assert get_importer("v1g") is import_v1g
    with pytest.raises(ValueError, match=r"unknown importer 'v1gg'; did you mean 'v1g'"):
        get_importer("v1gg")


def test_the_importer_loads_no_torch() -> None:
    code = (
        "import sys, v1lit.data.sources.v1g;"
        "print([n for n in ('torch', 'webdataset', 'transformers', 'lightning') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
