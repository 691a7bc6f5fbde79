"""What a run was made with stands above its saved recipe."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from v1lit.cli import environment
from v1lit.cli.doctor import extras
from v1lit.cli.environment import describe_environment, git_revision, versions
from v1lit.cli.lightning import console_script


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@y"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "--quiet", "--message", "a")
    return tmp_path


def test_versions_are_those_that_are_installed() -> None:
    found = versions(["torch", "no-such-package"])
    assert found == {
        "python": platform.python_version(),
        "torch": version("torch"),
        "no-such-package": "not installed",
    }


def test_the_revision_of_a_checkout_says_whether_it_was_changed(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert git_revision(checkout) == head
    (checkout / "a").write_text("2")
    assert git_revision(checkout) == f"{head} with uncommitted changes"


def test_outside_of_a_checkout_there_is_no_revision(tmp_path: Path) -> None:
    assert git_revision(tmp_path) == "none"


def test_the_current_folder_counts_where_v1lit_is_in_no_checkout(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "__file__", str(tmp_path_factory.mktemp("site") / "environment.py"))
    monkeypatch.chdir(checkout)
    assert git_revision() == git(checkout, "rev-parse", "HEAD")


def test_without_git_there_is_no_revision(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_revision(checkout) == "none"


def test_the_header_is_a_comment_from_which_the_command_can_be_copied() -> None:
    header = describe_environment(["tiny_qwen", "--run.name=a b"], seed=7)
    assert yaml.safe_load(header + "a: 1\n") == {"a": 1}
    lines = header.splitlines()
    assert lines[:2] == ["# command: v1lit run tiny_qwen '--run.name=a b'", "# seed: 7"]
    assert f"# torch: {version('torch')}" in lines


def test_the_extras_of_what_is_only_imported_are_not_known() -> None:
    assert list(extras("no-such-package")) == ["unknown: no-such-package is not installed, only imported"]


def test_a_distribution_that_is_not_installed_has_no_scripts() -> None:
    assert console_script("no-such-package", "lightning") is None
