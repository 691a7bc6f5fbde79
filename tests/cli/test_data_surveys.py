"""`v1lit data check RECIPE` and `v1lit data stats`: what they say, exit codes, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.refusals import assert_refused
from helpers.shard_cases import make, write

from v1lit.cli.main import main
from v1lit.data.shards import ShardWriter, write_index

pytestmark = pytest.mark.dependencies


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three examples in a/train, one in a/val, one in b, and a recipe that takes b three times as often."""
    write(tmp_path / "a" / "train", ["a", "b", "c"], max_examples=2)
    write(tmp_path / "a" / "val", ["v"])
    write(tmp_path / "b", ["d"])
    (tmp_path / "mix.yaml").write_text(
        "base: tiny_qwen\ndata:\n  source:\n    name: shards\n    options: {}\n    folder: a\n    mixture:\n"
        "    - {shards: a/train, weight: 1}\n    - {shards: b, weight: 3}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quiet(*arguments: object) -> int:
    return main(["data", *map(str, arguments), "--no-progress", "--workers", "1"])


def row(out: str, name: str) -> list[list[str]]:
    """The cells of all lines of tables that begin with a name."""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    return [cells[1:] for cells in lines if cells and cells[0] == name]


# --- check RECIPE ---


def test_a_recipe_that_fits_passes_with_its_lengths_and_costs(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quiet("check", "mix.yaml") == 0
    out = capsys.readouterr().out
    assert out.startswith("nothing is wrong: 4 shards, 5 examples, 5 images decoded, 5 regions")
    assert "lengths in tokens, of at most 512" in out
    # Each has 45 tokens, 6 of an image and 14 learned; an epoch has 4 examples, one of a and three of b.
    length, cost = row(out, "a/train")
    assert length == ["3", "45", "45", "45", "0", "0", "0", "0", "0"]
    assert cost == ["135", "45.0", "13.3%", "31.1%", "45", "25.0%"]
    assert row(out, "b")[1] == ["45", "45.0", "13.3%", "31.1%", "135", "75.0%"]
    assert row(out, "a/val")[1] == ["45", "45.0", "13.3%", "31.1%", "", ""]
    assert row(out, "all")[0][0] == "5"
    assert "stop" not in out


def test_what_is_cut_is_told_and_listed_but_nothing_wrong(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quiet("check", "mix.yaml", "--data.encoding.max_tokens=40") == 0
    out = capsys.readouterr().out
    assert "3 of 3 examples are longer than data.encoding.max_tokens=40: 33 tokens are cut" in out
    assert "with 3 regions; the longest has 45 ('a' of a/train/shard-000000.tar)" in out
    assert "--out FILE lists the examples that are cut" in out
    assert quiet("check", "mix.yaml", "--data.encoding.max_tokens=40", "--out", "found.jsonl") == 0
    lines = [json.loads(line) for line in (root / "found.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["key"]) for line in lines] == [("cut", key) for key in "abcdv"]
    assert "--out FILE" not in capsys.readouterr().out


def test_what_is_refused_is_a_finding_with_its_reason(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quiet("check", "mix.yaml", "--data.encoding.max_tokens=9", "--out", "found.jsonl") == 1
    out = capsys.readouterr().out
    assert "a/train/shard-000000.tar, example 'a': image 0 of example 'a' needs tokens 14 to 22" in out
    assert "5 problems" in out
    assert "3 of 3 examples are refused: 3 x image 0 of example 'a' needs" in out
    assert "nothing to read: not one of 4 examples can be used" in out, "the one of validation does not count"
    lines = [json.loads(line) for line in (root / "found.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["length"] * 5


def test_one_refused_example_stops_a_run_that_skips_none(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ShardWriter(root / "b2") as writer:
        for example in (make("x"), make("y", images=8)):
            writer.write(example)
    write_index(root / "b2", writer.shards)
    options = ("--data.source.mixture=[{shards: b2}]", "--data.encoding.max_tokens=60")
    assert quiet("check", "mix.yaml", *options) == 1
    assert "the run would stop" not in capsys.readouterr().out
    assert quiet("check", "mix.yaml", *options, "--data.stream.on_bad=stop") == 1
    assert "the run would stop at the first example that it cannot use" in capsys.readouterr().out


def test_the_bare_name_of_a_recipe_is_one_unless_a_folder_has_it(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("--data.source.name=shards", "--data.source.options={}", "--data.source.folder=a")
    assert quiet("check", "tiny_qwen", *changes) == 0
    assert "lengths in tokens" in capsys.readouterr().out
    write(root / "tiny_qwen", ["t"])
    assert quiet("check", "tiny_qwen") == 0
    assert "lengths in tokens" not in capsys.readouterr().out


# --- stats ---


def test_stats_of_a_folder_are_tables(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quiet("stats", "a") == 0
    out = capsys.readouterr().out
    assert row(out, "a/train") == [["3", "3", "3", "3"]]
    # 29 x 18 of 40 x 32 pixels.
    assert row(out, "area of a region") == [["40.78%"] * 6]
    assert row(out, "where") == [["3", "100.0%"]]
    assert "tokens" not in out


def test_stats_of_a_recipe_have_tokens_and_all_its_training_sources(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quiet("stats", "mix.yaml", "--html", "page.html") == 0
    out = capsys.readouterr().out
    assert row(out, "a/train") == [["3", "3", "3", "3", "135", "13.3%", "31.1%", "75.0%"]]
    assert row(out, "all") == [["4", "4", "4", "4", "180", "13.3%", "31.1%", "100.0%"]]
    assert row(out, "tokens of an example") == [["45.0", *["45"] * 5]]
    assert row(out, "a/val") == []
    assert out.splitlines()[-1] == "page.html"
    page = (root / "page.html").read_text(encoding="utf-8")
    assert "mix.yaml: 4 examples" in page
    assert "most image tokens" in page


def test_a_backbone_counts_the_tokens_of_a_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quiet("stats", "b", "--backbone", "qwen2_5_vl") == 0
    assert row(capsys.readouterr().out, "image tokens of an example") == [["6.0", *["6"] * 5]]


def test_problems_are_counted_and_left_to_check(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "a/train/shard-000001.tar").unlink()
    assert quiet("stats", "a") == 0
    assert (
        "1 problems, whose examples may not be counted: `v1lit data check a` names them"
        in capsys.readouterr().err
    )


MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "two recipes": (["check", "mix.yaml", "tiny_qwen"], ["mix.yaml is a recipe", "give it alone"]),
    "a recipe and a folder": (["check", "a/train", "mix.yaml"], ["mix.yaml is a recipe"]),
    "no such recipe": (["check", "mxi.yaml"], ["no recipe 'mxi.yaml'"]),
    "a change of a folder": (["check", "b", "--data.seed=3"], ["'--data.seed'"]),
    "shards that are not made yet": (["check", "tiny_qwen"], ["data/tiny_shapes", "v1lit data synth"]),
    "a key that is none": (["check", "mix.yaml", "--data.encoding.max_token=9"], ["max_token"]),
    "a stream": (
        [
            "check",
            "mix.yaml",
            "--data.source.name=webdataset",
            "--data.source.path=x.tar",
            "--data.source.mixture=[]",
        ],
        ["'webdataset', a stream"],
    ),
    "nothing to count": (["stats"], ["SOURCE"]),
    "missing folder to count": (["stats", "nowhere"], ["nowhere"]),
    "a change of a folder to count": (["stats", "b", "--data.seed=3"], ["'--data.seed'"]),
    "the backbone of a recipe": (["stats", "mix.yaml", "--backbone", "llava"], ["model.backbone.name"]),
    "unknown backbone": (["stats", "b", "--backbone", "lava"], ["'lava'", "did you mean 'llava'"]),
    "a page that is a folder": (["stats", "b", "--html", "a"], ["--html=a is a folder"]),
    "no processes": (["stats", "b", "--workers", "0"], ["workers is 0"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_two_lines_and_leaves_nothing(
    mistake: str, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, words = MISTAKES[mistake]
    assert_refused(arguments, words, root, capfd)


@pytest.mark.slow
def test_two_processes_count_what_one_counts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outs = []
    for workers in ("1", "2"):
        assert main(["data", "stats", "mix.yaml", "--workers", workers, "--no-progress"]) == 0
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1]
