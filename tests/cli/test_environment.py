"""What a run was made with is told as far as it can be known."""

from __future__ import annotations

from pathlib import Path

import pytest

from v1lit.cli.doctor import extras
from v1lit.cli.environment import describe_environment, git_revision, versions
from v1lit.cli.lightning import console_script


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert versions(["no-such-package"])["no-such-package"] == "not installed"


@pytest.mark.parametrize("path", ["", None])
def test_without_git_or_a_checkout_there_is_no_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str | None
) -> None:
    if path is not None:
        monkeypatch.setenv("PATH", path)
    assert git_revision(tmp_path) == "none"


def test_every_line_of_the_description_is_a_comment() -> None:
    lines = describe_environment(["my recipe.yaml"], seed=3).splitlines()
    assert all(line.startswith("# ") for line in lines)
    assert lines[:2] == ["# command: v1lit run 'my recipe.yaml'", "# seed: 3"]


def test_the_extras_of_what_is_only_imported_are_not_known() -> None:
    assert list(extras("no-such-package")) == ["unknown: no-such-package is not installed, only imported"]


def test_a_distribution_that_is_not_installed_has_no_scripts() -> None:
    assert console_script("no-such-package", "lightning") is None
