"""Which parquet files of a source belong to which split, and where each split goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.v1g_cases import numbered, run, write

from v1lit.data.importing.find import find_source
from v1lit.data.shards import read_index

pytestmark = pytest.mark.dependencies


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
    with pytest.raises(ValueError, match=r"holds no files of rows \(\.parquet\)"):
        run(folder, tmp_path / "out")
    with pytest.raises(ValueError, match="no such file or folder"):
        run(tmp_path / "missing", tmp_path / "out")
    touch(folder, "x.parquet")
    with pytest.raises(ValueError, match="the option split='val' is for folders"):
        run(folder / "x.parquet", tmp_path / "out", split="val")
    with pytest.raises(ValueError, match="is not a readable parquet file"):
        run(folder / "x.parquet", tmp_path / "out")
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
