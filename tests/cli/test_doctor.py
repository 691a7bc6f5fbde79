"""`v1lit doctor` says what is installed, who owns `lightning`, and what a missing extra is for."""

from __future__ import annotations

import os
import re
from importlib.metadata import requires
from pathlib import Path

import pytest

from v1lit.cli.doctor import EXTRAS, extras, lightning_commands
from v1lit.cli.main import main


def script(folder: Path, text: str) -> Path:
    folder.mkdir()
    path = folder / "lightning"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_report_holds_every_part(capsys):
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    for words in ("versions", "torch", "transformers", "devices", "cpu", "`lightning`", "optional extras"):
        assert words in report


def test_the_first_lightning_on_the_path_is_told_with_its_owner(tmp_path):
    ours = script(tmp_path / "a", "from v1lit.cli.lightning import main")
    theirs = script(tmp_path / "b", "from lightning_sdk.cli.entrypoint import main_cli")
    other = script(tmp_path / "c", "echo hello")
    lines = list(lightning_commands(os.pathsep.join(str(one.parent) for one in (theirs, ours, other))))
    assert lines[0].split() == ["first", str(theirs), "belongs", "to", "lightning-sdk"]
    assert lines[1].split() == ["hidden", str(ours), "belongs", "to", "v1lit"]
    assert lines[2].endswith("another program")
    assert "v1lit run RECIPE" in lines[3]
    assert list(lightning_commands(str(ours.parent))) == [f"first   {ours}  belongs to v1lit"]


def test_a_path_without_lightning_is_told(tmp_path):
    assert "v1lit run" in next(lightning_commands(str(tmp_path)))


def test_every_extra_has_a_purpose():
    declared = requires("v1lit")
    if declared is None:
        pytest.skip("v1lit is not installed")
    named = {found for text in declared for found in re.findall(r"extra == ['\"]([^'\"]+)", text)}
    assert named == set(EXTRAS)


def test_a_missing_extra_is_told_with_its_purpose(monkeypatch):
    declared = ["torch", 'no-such-package; extra == "wandb"', 'pytest; extra == "dev"']
    monkeypatch.setattr("v1lit.cli.doctor.requires", lambda name: declared)
    lines = list(extras())
    assert lines[0].split()[:3] == ["wandb", "missing", "no-such-package"]
    assert EXTRAS["wandb"] in lines[0]
    assert lines[1].split()[:2] == ["dev", "present"]
