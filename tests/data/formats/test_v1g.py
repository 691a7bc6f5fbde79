"""The v1g importer accepts what is good and names what is bad."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.v1g_cases import PHOTO, SCHEMA, examples, jpeg, numbered, rejected, row, run, write
from pyarrow import parquet

from v1lit.backbones import BackboneConfig
from v1lit.backbones.processor import load_processor
from v1lit.data.config import EncodingConfig, SourceConfig
from v1lit.data.encode.encoding import EncodingError, encode
from v1lit.data.example import Example, ExampleError, Message
from v1lit.data.example.marks import words_of
from v1lit.data.formats.registry import FORMATS, get_format
from v1lit.data.formats.v1g import row_to_example
from v1lit.data.shards import Shard, list_shards, read_index, verify_shard
from v1lit.data.sources.registry import check_source, prepare_source
from v1lit.grounding.region import Region

pytestmark = pytest.mark.dependencies


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
    for odd, size in zip(rows, [(4000, 10), (20, 10)], strict=True):
        odd |= {"image": {"bytes": jpeg(*size), "path": None}, "image_size": list(size)}
        odd["regions"] = json.dumps({name: [1, 1, 9, 9] for name in json.loads(odd["regions"])})
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


def test_other_parquet_files_are_refused_before_any_work(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(numbered(1), SCHEMA)
    parquet.write_table(table.drop_columns(["regions"]), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="not in the v1g format: no column regions; it has"):
        run(tmp_path / "x.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    flat = table.set_column(1, "image", pa.array([PHOTO]))
    parquet.write_table(flat, tmp_path / "x.parquet")
    failed = run(tmp_path / "x.parquet", tmp_path / "out").failed
    assert failed is not None
    assert "the image is missing (no bytes)" in failed


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


def test_a_box_format_that_cannot_be_is_refused_before_anything_is_read() -> None:
    for given, why in (
        ({"unit": "inches"}, "inches"),
        ({"units": "0-1"}, "did you mean 'unit'"),
        (3, "keys unit"),
    ):
        with pytest.raises(ValueError, match=why):
            check_source(SourceConfig(name="llava", path="nowhere.json", options={"box_format": given}))


def test_formats_are_found_by_name() -> None:
    assert [get_format(name).name for name in FORMATS] == list(FORMATS)
    with pytest.raises(ValueError, match=r"unknown format 'v1gg'; did you mean 'v1g'"):
        get_format("v1gg")


def test_whoever_trains_on_shards_loads_no_parquet() -> None:
    code = "import sys, v1lit.data.datamodule; print('pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_importer_loads_no_torch() -> None:
    code = (
        "import sys, v1lit.data.importing.run, v1lit.data.formats.registry as r;"
        "[r.get_format(name) for name in r.FORMATS];"
        "print([n for n in ('torch', 'webdataset', 'transformers', 'lightning') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
