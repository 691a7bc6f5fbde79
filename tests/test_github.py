"""`.github/`: what runs on every push, and what forms ask for."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it as well

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
FORMS = ("bug", "feature")
FIELDS = {"textarea", "input", "dropdown", "checkboxes"}


def read(name: str) -> dict[Any, Any]:
    content = yaml.safe_load((GITHUB / name).read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def fields(form: str) -> dict[str, dict[str, Any]]:
    return {field["id"]: field for field in read(f"ISSUE_TEMPLATE/{form}.yml")["body"]}


# ---------------------------------------------------------------- the workflow


def job() -> dict[str, Any]:
    (only,) = read("workflows/ci.yml")["jobs"].values()
    return only


def test_the_workflow_runs_ci_run_and_nothing_else_of_ours() -> None:
    assert [step["run"] for step in job()["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_it_runs_on_pushes_and_pull_requests_with_a_limit_of_time_and_no_right_to_write() -> None:
    workflow = read("workflows/ci.yml")
    # YAML 1.1 reads the key `on` as true.
    assert set(workflow[True]) == {"push", "pull_request"}
    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in job()
    assert 0 < job()["timeout-minutes"] <= 60


def test_its_pythons_are_allowed_and_those_of_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").partition("\n")[0]
    pythons = job()["strategy"]["matrix"]["python"]
    assert all(SpecifierSet(project["requires-python"]).contains(f"{python}.0") for python in pythons)
    assert pythons == re.findall(r"3\.\d+", lock), "the oldest and the newest that the lock is for"


def test_actions_are_those_of_github_at_a_major_version_and_pip_is_cached_by_the_lock() -> None:
    actions = {step["uses"]: step.get("with", {}) for step in job()["steps"] if "uses" in step}
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in actions)
    cached = next(settings for action, settings in actions.items() if "setup-python" in action)
    assert (cached["cache"], cached["cache-dependency-path"]) == ("pip", "requirements.lock")


# ---------------------------------------------------------------- the forms


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_one_that_github_shows(form: str) -> None:
    content = read(f"ISSUE_TEMPLATE/{form}.yml")
    assert {"name", "description", "body"} <= set(content)
    assert len(fields(form)) == len(content["body"]), "two fields have one id"
    for field in content["body"]:
        assert field["type"] in FIELDS
        assert field["attributes"]["label"]
        assert set(field) <= {"type", "id", "attributes", "validations"}
        assert set(field.get("validations", {})) <= {"required"}


def test_all_issues_begin_with_a_form() -> None:
    assert {path.stem for path in (GITHUB / "ISSUE_TEMPLATE").iterdir()} == {*FORMS, "config"}
    assert read("ISSUE_TEMPLATE/config.yml") == {"blank_issues_enabled": False}


def test_a_bug_comes_with_the_doctors_output_the_command_and_the_whole_message() -> None:
    bug = fields("bug")
    assert {name for name, field in bug.items() if field.get("validations", {}).get("required")} == {
        *("what", "command", "message", "doctor"),
    }
    assert "v1lit doctor" in bug["doctor"]["attributes"]["label"]
    assert "--print_config" in bug["recipe"]["attributes"]["description"]


def test_a_wish_may_come_with_the_doctors_output() -> None:
    doctor = fields("feature")["doctor"]
    assert "v1lit doctor" in doctor["attributes"]["label"]
    assert not doctor.get("validations", {}).get("required")


# ---------------------------------------------------------------- pull requests


def test_a_pull_request_is_asked_for_what_contributing_says_that_a_change_brings_along() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = guide.partition("## What a change brings along")[2].partition("\n## ")[0]
    asked = re.findall(r"^- \*\*(.+?)\*\*", section, re.MULTILINE)
    template = (GITHUB / "PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8")
    assert len(asked) == 4
    assert re.findall(r"^- \[ \] \*\*(.+?)\*\*", template, re.MULTILINE) == asked
    assert "`.ci/run`" in template


@pytest.mark.parametrize("path", sorted(GITHUB.rglob("*.*")), ids=lambda path: path.name)
def test_nothing_leads_to_a_person_or_to_an_address(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"(?<![\w/-])@\w", text)
