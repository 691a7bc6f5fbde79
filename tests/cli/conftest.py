"""Fixtures of the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a module's runs draw their scenes, once."""
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture
def in_fresh_folder(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in a folder of its own, whose `data` is that of the module."""
    (tmp_path / "data").symlink_to(scenes)
    monkeypatch.chdir(tmp_path)
