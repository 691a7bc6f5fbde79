"""Files and folders appear whole or not at all, whatever goes wrong, and there is one way to write them."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from v1lit.files import aside, free_path, remove_leftovers, write_atomically

pytestmark = pytest.mark.dependencies

PACKAGE = Path(__file__).resolve().parents[1] / "v1lit"
FAILURES = (
    ValueError("wrong"),
    OSError(28, "no space left"),
    KeyboardInterrupt(),
    SystemExit(1),
)


def make_file(path: Path) -> None:
    path.write_text("new")


def make_folder(path: Path) -> None:
    (path / "inner").mkdir(parents=True)
    (path / "inner/file").write_text("new")


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("make", [make_file, make_folder, None])
@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failure_leaves_nothing_behind_and_what_was_there(
    tmp_path: Path, make: Callable[[Path], None] | None, error: BaseException
) -> None:
    (tmp_path / "out").write_text("old")

    def make_and_fail(path: Path) -> None:
        with aside(path) as unfinished:
            if make is not None:
                make(unfinished)
            raise error

    for name in ("out", "fresh"):
        with pytest.raises(type(error)):
            make_and_fail(tmp_path / name)
    assert content(tmp_path) == {"out": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failure_while_the_name_is_given_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    write_atomically(tmp_path / "out", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(type(error)):
            write_atomically(tmp_path / "out", "new")
    assert content(tmp_path) == {"out": "old"}


def test_a_file_replaces_an_older_one_and_a_folder_an_empty_one_only(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_atomically(tmp_path / "file", text)
    (tmp_path / "folder").mkdir()
    with aside(tmp_path / "folder") as unfinished:
        make_folder(unfinished)
    with pytest.raises(OSError, match="folder"), aside(tmp_path / "folder") as unfinished:
        unfinished.mkdir()
    assert content(tmp_path) == {"file": "new", "folder/inner/file": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_two_writers_of_one_name_do_not_meet(tmp_path: Path) -> None:
    with aside(tmp_path / "out") as first, aside(tmp_path / "out") as second:
        first.write_text("first")
        second.write_text("second")
    assert content(tmp_path) == {"out": "first"}


def test_what_is_aside_is_hidden_and_has_another_suffix(tmp_path: Path) -> None:
    with aside(tmp_path / "shard.tar") as unfinished:
        make_file(unfinished)
        assert unfinished.name.startswith(".shard.tar.")
        assert not list(tmp_path.glob("*.tar"))


def test_what_killed_processes_leave_is_removed_by_name_or_all(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from v1lit.files import aside\n"
    code += "with aside(Path(sys.argv[1])) as path:\n"
    code += "    path.write_text('half'); print('begun', flush=True); time.sleep(600)"
    for name in ("a", "a.b"):
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "begun\n"
            child.send_signal(signal.SIGKILL)
    (tmp_path / "a").write_text("whole")
    assert len(list(tmp_path.iterdir())) == 3
    remove_leftovers(tmp_path, "a.b")
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert content(tmp_path) == {"a": "whole"}


RENAMES = {
    "files.py": "the one way to write aside and rename",
    "data/remote/download.py": "a download is resumed, so what is there stays after a failure",
    "data/shards/staging.py": "finished shards move to their places",
}
"""Modules that may give a file another name, and why."""


def renames(path: Path) -> bool:
    """Whether a module calls `os.replace`, `os.rename`, or a path's method of such a name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, name = ast.unparse(node.func.value), node.func.attr
            if name in ("rename", "renames") or (
                name == "replace" and (owner == "os" or len(node.args) == 1)
            ):
                return True
            if owner in ("shutil", "tempfile") and name in ("move", "mkdtemp", "mkstemp"):
                return True
    return False


def test_only_the_modules_of_the_list_rename_files() -> None:
    found = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if renames(path)}
    assert found == set(RENAMES)


@pytest.mark.parametrize("call", ["os.replace(a, b)", "a.replace(b)", "a.rename(b)", "shutil.move(a, b)"])
def test_a_rename_is_seen(tmp_path: Path, call: str) -> None:
    (tmp_path / "module.py").write_text(f"def f(a, b):\n    {call}\n")
    assert renames(tmp_path / "module.py")
    (tmp_path / "module.py").write_text("x = 'a'.replace('a', 'b'); y = replace(x, file=x)\n")
    assert not renames(tmp_path / "module.py")


def test_a_free_path_is_the_name_itself_or_the_first_free_number_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for name in ("recipe.yaml", "recipe-2.yaml", "recipe-3.yaml"):
        assert free_path(path).name == name
        make_file(tmp_path / name)
    (tmp_path / "csv").mkdir()
    assert free_path(tmp_path / "csv") == tmp_path / "csv-2"
