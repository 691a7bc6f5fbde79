"""Every run has a folder of its own, and one that ends before it wrote anything leaves none."""

from __future__ import annotations

from pathlib import Path

import pytest

from v1lit.cli.errors import UserError
from v1lit.cli.run_folder import run_folder, save_recipe
from v1lit.training.config import RunConfig


@pytest.fixture(autouse=True)
def one_second(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("v1lit.cli.run_folder.time.strftime", lambda format: "now")


def test_runs_without_a_name_in_the_same_second_have_folders_of_their_own():
    with run_folder(RunConfig(), "r") as first, run_folder(RunConfig(), "r") as second:
        save_recipe(first, "a: 1\n")
        with run_folder(RunConfig(), "r") as third:
            assert [first.name, second.name, third.name] == ["r-now", "r-now-2", "r-now-3"]
            assert third.is_dir()
    assert first.is_dir()
    assert not second.exists()


def test_a_run_that_ends_before_it_wrote_anything_leaves_nothing(tmp_path):
    with run_folder(RunConfig(folder="a/b", name="c"), "r") as folder:
        assert folder.is_dir()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_there_stays():
    Path("runs/x").mkdir(parents=True)
    with run_folder(RunConfig(name="x"), "r"):
        pass
    assert Path("runs/x").is_dir()


def test_a_taken_name_is_refused_unless_the_run_goes_on_from_a_checkpoint():
    with run_folder(RunConfig(name="x"), "r") as folder:
        save_recipe(folder, "a: 1\n")
    with pytest.raises(UserError, match=r"run\.name is 'x'"), run_folder(RunConfig(name="x"), "r"):
        pass
    with run_folder(RunConfig(name="x", resume="x.ckpt"), "r") as again:
        save_recipe(again, "a: 2\n")
    assert (folder / "recipe.yaml").read_text() == "a: 1\n"
    assert (folder / "recipe-2.yaml").read_text() == "a: 2\n"


def test_a_process_for_another_device_takes_the_folder_of_the_first(monkeypatch):
    with run_folder(RunConfig(), "r") as first:
        monkeypatch.setattr("v1lit.cli.run_folder.rank_zero_only.rank", 1)
        with run_folder(RunConfig(), "r") as same:
            assert same == first
        assert first.is_dir()


def test_a_run_whose_checkpoint_is_not_there_makes_no_folder(tmp_path):
    with (
        pytest.raises(ValueError, match="no complete checkpoint in runs/x/checkpoints"),
        run_folder(RunConfig(name="x", resume="last"), "r"),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_auto_takes_a_folder_whether_or_not_it_holds_a_run():
    for _ in range(2):
        with run_folder(RunConfig(name="x", resume="auto"), "r") as folder:
            save_recipe(folder, "a: 1\n")
    assert sorted(path.name for path in Path("runs/x").iterdir()) == ["recipe-2.yaml", "recipe.yaml"]


NAMES = ["a[bold]2", "-x", "a b", "é", "4211337", "sweep/1", "x/", "12:30", "a'b", "~"]
NO_NAMES = ["", " ", ".", "..", "../x", "a/../../x", "/tmp/x", "a\nb", "a\x1bb", "a::b", "s3://x"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_may_have_any_name_that_a_folder_may_have(name):
    with run_folder(RunConfig(name=name), "r") as folder:
        assert folder == Path("runs") / name
        assert folder.is_dir()


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_would_leave_the_folder_or_break_it_is_refused(name):
    with pytest.raises(ValueError, match=r"run\.name is "):
        RunConfig(name=name)


def test_a_name_that_is_too_long_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match="File name too long"), run_folder(RunConfig(name="x" * 300), "r"):
        pass
    assert not list(tmp_path.iterdir())
