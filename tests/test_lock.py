"""requirements.lock: exact, for every platform that is named, whole, and without addresses."""

from __future__ import annotations

import platform
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
EXTRAS = ("", "dev", "docs", "wandb", "s3", "gs", "az")
PLATFORMS = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def rows() -> list[Requirement]:
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def environment(system: str, machine: str, python: str) -> dict[str, str]:
    return {
        "sys_platform": system,
        "platform_system": system.capitalize(),
        "platform_machine": machine,
        "python_version": python,
        "python_full_version": f"{python}.9",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "extra": "",
    }


def applies(one: Requirement, where: dict[str, str]) -> bool:
    return one.marker is None or one.marker.evaluate(where)


def declared(where: dict[str, str]) -> list[Requirement]:
    """What v1lit and the locked extras ask for directly."""
    found = [Requirement(text) for text in requires("v1lit") or []]
    return [one for one in found if any(applies(one, {**where, "extra": extra}) for extra in EXTRAS)]


def test_every_row_is_one_exact_version_without_an_address() -> None:
    assert "://" not in LOCK.read_text(encoding="utf-8")
    for one in rows():
        assert [specifier.operator for specifier in one.specifier] == ["=="], one
        assert one.url is None, one


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("system", "machine"), PLATFORMS)
def test_every_platform_has_one_version_of_each_package_and_it_is_allowed(
    system: str, machine: str, python: str
) -> None:
    where = environment(system, machine, python)
    here = [one for one in rows() if applies(one, where)]
    assert max(Counter(canonicalize_name(one.name) for one in here).values()) == 1
    locked = {canonicalize_name(one.name): next(iter(one.specifier)).version for one in here}
    asked = declared(where)
    assert len(asked) > 20
    for one in asked:
        name = canonicalize_name(one.name)
        assert name in locked, f"{one} is not in the lock: make lock"
        assert one.specifier.contains(Version(locked[name]), prereleases=True), f"{one}: make lock"


def test_an_environment_made_by_make_has_the_versions_of_the_lock() -> None:
    stamps = [Path(sys.prefix, name) for name in (".dev", ".base")]
    if not any(stamp.is_file() and stamp.stat().st_mtime >= LOCK.stat().st_mtime for stamp in stamps):
        pytest.skip("this environment was not made by make from this lock")
    python = ".".join(map(str, sys.version_info[:2]))
    where = environment(sys.platform, platform.machine(), python)
    wrong = {}
    for one in rows():
        if applies(one, where):
            try:
                found = version(one.name)
            except PackageNotFoundError:  # of an extra that is not installed
                continue
            if not one.specifier.contains(found, prereleases=True):
                wrong[one.name] = found
    assert wrong == {}
