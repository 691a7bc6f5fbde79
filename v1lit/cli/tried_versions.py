"""Versions that v1lit was tested with, and which of the installed ones are newer or older.

`tried_versions.json` is written by `tools/versions.py record` at the end of a run of the tests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from v1lit.cli.environment import PACKAGES, versions

FILE = Path(__file__).with_name("tried_versions.json")
MAJOR = ("python", "torchvision", "webdataset", *PACKAGES)
"""What a run tells about where it is newer than tested; `v1lit doctor` shows every dependency."""
WHERE_TO_LOOK = (
    "if something breaks: v1lit doctor --self-test, docs/versions.md, or the tested set with "
    "pip install --constraint requirements.lock v1lit"
)


@dataclass(frozen=True)
class Tried:
    """The oldest and the newest version of a package with which all tests passed."""

    oldest: str
    newest: str

    def remark(self, package: str, installed: str) -> str:
        """`newer than tested (...)`, `older than tested (...)`, or an empty text."""
        try:
            version = _comparable(package, installed)
        except InvalidVersion:  # not installed, or of an unusual make
            return ""
        if version > _comparable(package, self.newest):
            return f"newer than tested ({self.newest})"
        if version < _comparable(package, self.oldest):
            return f"older than tested ({self.oldest})"
        return ""


def runs() -> dict[str, dict[str, Any]]:
    """What every run of the tests was made with, by its name."""
    content: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))["runs"]
    return content


@cache
def tried() -> dict[str, Tried]:
    """Tested versions by package, and of Python; of runs in which no test failed."""
    seen: dict[str, list[str]] = {}
    for run in runs().values():
        if not run["failed"]:
            for package, number in {"python": run["python"], **run["versions"]}.items():
                seen.setdefault(package, []).append(number)
    return {
        name: Tried(min(numbers, key=Version), max(numbers, key=Version)) for name, numbers in seen.items()
    }


def remarks() -> dict[str, tuple[str, str]]:
    """Of every tested package the installed version, and a remark where that is newer or older."""
    installed = versions([name for name in tried() if name != "python"])
    return {
        name: (number, tried()[name].remark(name, number))
        for name, number in installed.items()
        if name in tried()
    }


def newer_line() -> str | None:
    """One line where a major dependency is newer than tested, else None."""
    newer = [
        f"{name} {number} ({tried()[name].newest})"
        for name, (number, remark) in remarks().items()
        if name in MAJOR and remark.startswith("newer")
    ]
    return f"newer than tested: {', '.join(newer)}; {WHERE_TO_LOOK}" if newer else None


def _comparable(package: str, number: str) -> Version:
    """Without the local part (`+cu130`); of Python the first two numbers. Raises InvalidVersion."""
    version = Version(number)
    return Version(f"{version.major}.{version.minor}") if package == "python" else Version(version.public)
