"""Runs the tests that touch dependencies, records with which versions, and renders docs/versions.md of it.

    python tools/versions.py run oldest
    python tools/versions.py record --name oldest --passed 812 --failed 0 --skipped 3 --seconds 411
    python tools/versions.py render

Versions are those of the interpreter that runs it. `record` notes a run of the tests that was made otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from packaging.requirements import Requirement
from packaging.version import Version

from v1lit.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "v1lit/cli/tried_versions.json"
PAGE = ROOT / "docs/versions.md"
NAMES = {
    "oldest": "the lowest versions that `pyproject.toml` allows (`make test-oldest`)",
    "locked": "`requirements.lock`, which `make install` installs (`make test-locked`)",
    "newest": "the newest versions that `pyproject.toml` allows (`make test-newest`)",
}
"""Names of runs, in the order of the table's columns, and what each is made with."""

HEAD = """# Versions

What the tests were run with. `tools/versions.py` writes this page at the end of the runs it shows, and v1lit
carries the same table: `v1lit doctor` compares it with what is installed, and `lightning run` says in one
line when a major dependency is newer.
"""
TAIL = """
## When something breaks

The self-test takes less than a minute and needs no data. Every family's tiny version trains three steps, is
saved and opened, generates with and without cache, greedily and with beams; packed examples are compared with
each alone, and the loss with its readable reference. All that on your installation, and on the fastest device
there is or the one that `--device cpu`, `cuda` or `mps` names:

```bash
v1lit doctor --self-test
```

If a check fails and a package is newer than tested, install the tested set into the same environment with
`pip install --constraint requirements.lock v1lit` (the file lies in the repository), and try again. Please
report what failed, with the output of `v1lit doctor`.
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    record_parser = commands.add_parser("record", help="note a run of the tests and render the page")
    record_parser.add_argument("--name", required=True, choices=NAMES)
    for number in ("passed", "failed", "skipped"):
        record_parser.add_argument(f"--{number}", required=True, type=int)
    record_parser.add_argument("--seconds", required=True, type=float)
    run_parser = commands.add_parser("run", help="run the tests that touch dependencies, and record that")
    run_parser.add_argument("name", choices=NAMES)
    commands.add_parser("render", help="render the page from what is recorded")
    options = parser.parse_args(argv)
    code = 0
    if options.command == "run":
        code, counts = run_tests(["-m", "dependencies"])
        record(FILE, options.name, counts)
    elif options.command == "record":
        names = ("passed", "failed", "skipped")
        counts = {name: getattr(options, name) for name in names}
        record(FILE, options.name, {**counts, "seconds": round(options.seconds)})
    write_atomically(PAGE, render(json.loads(FILE.read_text(encoding="utf-8"))["runs"]))
    return code


def run_tests(arguments: Sequence[str]) -> tuple[int, dict[str, int]]:
    """Run pytest on several processes of one thread each; its exit code, and how many tests came out how.

    Raises SystemExit, so that nothing is recorded, if pytest did not come to an end.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "--numprocesses=auto", f"--junitxml={report}", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if code not in (0, 1):
            raise SystemExit(code)
        return code, counted(report.read_text(encoding="utf-8"))


def counted(report: str) -> dict[str, int]:
    """The numbers in pytest's report in JUnit's format; an error beside a test counts as a failure."""
    suite = ElementTree.fromstring(report).find("testsuite")
    assert suite is not None
    numbers = {
        name: round(float(suite.get(name, 0))) for name in ("tests", "failures", "errors", "skipped", "time")
    }
    failed = numbers["failures"] + numbers["errors"]
    passed = numbers["tests"] - failed - numbers["skipped"]
    return {"passed": passed, "failed": failed, "skipped": numbers["skipped"], "seconds": numbers["time"]}


def record(file: Path, name: str, counts: Mapping[str, int]) -> None:
    """Write a run with this interpreter's versions into the file, in place of the last one of that name."""
    content = json.loads(file.read_text(encoding="utf-8"))
    run = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        **counts,
        "versions": installed(),
    }
    content["runs"] = {known: run if known == name else content["runs"].get(known) for known in NAMES}
    content["runs"] = {known: one for known, one in content["runs"].items() if one}
    write_atomically(file, json.dumps(content, indent=2) + "\n")


def installed(distribution: str = "v1lit") -> dict[str, str]:
    """Versions of the base dependencies, without local parts such as `+cpu`."""
    declared = [Requirement(text) for text in requires(distribution) or []]
    base = [one.name for one in declared if one.marker is None or one.marker.evaluate({"extra": ""})]
    return {name: Version(version(name)).public for name in sorted(base, key=str.lower)}


def render(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """The page: one table of runs, and one of versions with a column for every run."""
    if not runs:
        return f"{HEAD}\nNo run is recorded yet.\n{TAIL}"
    what = "".join(f"- **{name}**: {NAMES[name]}\n" for name in runs)
    facts = ["date", "python", "platform", "passed", "failed", "skipped", "seconds"]
    table = [["run", *facts], *([name, *(str(run[fact]) for fact in facts)] for name, run in runs.items())]
    packages = sorted({package for run in runs.values() for package in run["versions"]}, key=str.lower)
    rows = [[one, *(run["versions"].get(one, "") for run in runs.values())] for one in packages]
    return f"{HEAD}\n{what}\n{_table(table)}\n{_table([['package', *runs], *rows])}{TAIL}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body]) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
