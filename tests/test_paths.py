"""`~` and environment variables stand for what a shell puts there, in every path that enters v1lit."""

from __future__ import annotations

from pathlib import Path

import pytest

import v1lit
from v1lit.data.config import MixtureConfig, StreamConfig
from v1lit.paths import expand_path, expand_within
from v1lit.training.config import RunConfig


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("~", "HOME"),
        ("~/runs", "HOME/runs"),
        ("$SCRATCH/x", "/scratch/x"),
        ("${SCRATCH}/shard-{000..099}.tar", "/scratch/shard-{000..099}.tar"),
        ("a/$SCRATCH", "a//scratch"),
        ("./~/x", "./~/x"),
        ("a~", "a~"),
        ("costs-$5", "costs-$5"),
        ("${a.b}/x", "${a.b}/x"),
        ("s3://bucket/~me/$SCRATCH", "s3://bucket/~me/$SCRATCH"),
        ("pipe:cat ~/x.tar $SCRATCH", "pipe:cat ~/x.tar $SCRATCH"),
        ("https://host/~me/x.tar?sig=$SCRATCH", "https://host/~me/x.tar?sig=$SCRATCH"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
    ],
)
def test_paths_mean_what_a_shell_makes_of_them(given: str, meant: str, home: Path) -> None:
    assert expand_path(given) == meant.replace("HOME", str(home))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("$NOWHERE/x", "NOWHERE is not set"),
        ("${NOWHERE}/x", "NOWHERE is not set"),
        ("$EMPTY/x", "EMPTY is empty"),
        ("~no_such_user/x", r"no user 'no_such_user'.*\./~no_such_user/x"),
    ],
)
def test_what_stands_for_nothing_is_an_error_that_says_so(given: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        expand_path(given)


def test_a_file_that_is_really_called_so_is_meant(tmp_path: Path) -> None:
    for name in ("a$NOWHERE.jpg", "~tmp.jpg"):
        (tmp_path / name).touch()
        assert expand_path(name) == name
        assert expand_path(tmp_path / name) == str(tmp_path / name)


def test_a_folder_called_tilde_is_not_taken_for_the_home(tmp_path: Path, home: Path) -> None:
    (tmp_path / "~").mkdir()
    assert expand_path("~/x") == f"{home}/x"


def test_names_of_keys_in_braces_stay() -> None:
    assert expand_path("~/${data}", keys=("data",)).endswith("/${data}")


def test_arguments_of_any_class_are_paths_by_their_name_or_their_beginning(home: Path) -> None:
    given = {"dirpath": "$SCRATCH", "filename": "$SCRATCH-{step}", "many": ["~/a", 3, {"save_dir": "~"}]}
    assert expand_within(given) == {
        "dirpath": "/scratch",
        "filename": "$SCRATCH-{step}",
        "many": [f"{home}/a", 3, {"save_dir": str(home)}],
    }


def test_configs_expand_their_paths(home: Path) -> None:
    source = v1lit.SourceConfig(folder="~/a", val="$SCRATCH/b", path="~/c", options={"path": "~/d"})
    assert (source.folder, source.val, source.path) == (f"{home}/a", "/scratch/b", f"{home}/c")
    assert source.options == {"path": f"{home}/d"}
    assert MixtureConfig("~/a").shards == f"{home}/a"
    assert StreamConfig(cache="~/a").cache_folder == home / "a"
    assert v1lit.BackboneConfig(weights="~/a").weights == f"{home}/a"
    run = RunConfig(folder="~/runs", name="x", resume="$SCRATCH/last.ckpt")
    assert (run.folder, run.resume) == (f"{home}/runs", "/scratch/last.ckpt")


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.source\.folder is ''; give a path"):
        v1lit.SourceConfig(folder="")


def test_functions_that_read_and_write_expand_their_paths(home: Path) -> None:
    from v1lit.data.loading.dataset import ShardDataset
    from v1lit.data.shards import Shard, ShardWriter, index_shards, list_shards
    from v1lit.data.synthetic import synthesize
    from v1lit.data.tools.check import check
    from v1lit.data.tools.reshard import reshard
    from v1lit.data.tools.show import show

    assert synthesize("~/shards", examples=3, progress=False) == home / "shards"
    assert len(list_shards("~/shards")) == 1
    assert len(Shard("~/shards/shard-000000.tar")) == 3
    assert len(list(ShardDataset("~/shards", shuffle=False))) == 3
    assert index_shards("~/shards/*.tar")["examples"] == 3
    assert check(["~/shards"], out="~/found.jsonl", workers=1).passed
    assert (home / "found.jsonl").is_file()
    assert reshard(["~/shards"], "~/again", workers=1).folder == home / "again"
    assert show("~/again", "~/page.html", n=1) == home / "page.html"
    assert ShardWriter("~/new").folder == home / "new"
    assert not Path("~").exists()


def test_models_and_pictures_are_found_in_the_home(home: Path) -> None:
    from v1lit.backbones.processor import Processor
    from v1lit.inference.prompt import open_picture

    for opened in (v1lit.load, Processor.from_pretrained, open_picture):
        with pytest.raises(ValueError, match=str(home / "x")):
            opened("~/x")


def test_a_model_is_saved_into_the_home_and_found_there(home: Path) -> None:
    import torch

    torch.manual_seed(0)
    model = v1lit.PointAndCopyModel.build(v1lit.BackboneConfig(name="llava"))
    model.save_pretrained("~/model")
    assert (home / "model" / "config.json").is_file()
    assert v1lit.PointAndCopyModel.from_pretrained("~/model").config.family == "llava"
