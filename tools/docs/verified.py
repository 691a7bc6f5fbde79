"""Which claims the tests have shown of which family: records it, and renders it for docs/backbones.md.

    python tools/docs/verified.py              run all tests that name a family, and record what they show
    python tools/docs/verified.py REPORT.xml   record a run that was made otherwise, with pytest --junitxml;
                                               several reports where it was made in parts

A test belongs to a family if one of its parameters is the name of it or of a recipe of it, as in all tests
that run for every family. What a test claims is its name.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from v1lit.backbones.classes import class_name
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.registry import BUILTIN, get_backbone
from v1lit.cli.recipe import compose_all, shipped_recipes
from v1lit.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs/verified.json"
OUTCOMES = ("passed", "failed", "skipped")
PACKAGES = ("torch", "transformers", "lightning")
"""Whose versions are recorded beside the results."""
PICTURE = (640, 480)
"""Width and height of the image whose tokens the table of families counts."""


def main(argv: Sequence[str]) -> int:
    """Run the tests if no report is given, and record what they show; returns pytest's exit code."""
    if argv:
        record(FILE, *(Path(report).read_text(encoding="utf-8") for report in argv))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        chosen = ["-k", " or ".join(_names())]
        command = [sys.executable, "-m", "pytest", "--numprocesses=auto", f"--junitxml={report}", *chosen]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if code in (0, 1):
            record(FILE, report.read_text(encoding="utf-8"))
        return code


# ---------------------------------------------------------------- the record


def record(file: Path, *reports: str) -> None:
    """Write what reports in JUnit's format show, with date and versions, in place of what was recorded."""
    content = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {name: version(name).partition("+")[0] for name in PACKAGES},
        "claims": claims(reports, _names()),
    }
    write_atomically(file, json.dumps(content, indent=1) + "\n")


def claims(reports: Sequence[str], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Of every test: its file, its name, and by family how many of its cases came out how.

    Args:
        reports: pytest's, in JUnit's format; a case is in one of them.
        names: what a parameter may be to belong to a family: families and recipes -> family.
    """
    found: dict[tuple[str, str], dict[str, dict[str, int]]] = {}
    for case in (case for one in reports for case in ElementTree.fromstring(one).iter("testcase")):
        test, _, parameters = case.get("name", "").partition("[")
        families = {names[one] for one in _parameters(parameters) if one in names}
        if len(families) == 1:
            file = f"{case.get('classname', '').replace('.', '/')}.py"
            counts = found.setdefault((file, test), {}).setdefault(families.pop(), {})
            counts[_outcome(case)] = counts.get(_outcome(case), 0) + 1
    return [
        {"file": file, "test": test, "families": dict(sorted(found[file, test].items()))}
        for file, test in sorted(found)
    ]


def _names() -> dict[str, str]:
    """Families and shipped recipes -> the family."""
    recipes = {
        name: compose_all(name)[0].config["model"]["backbone"].get("name", BackboneConfig.name)
        for name in shipped_recipes()
    }
    return {**recipes, **{name: name for name in BUILTIN}}


def _parameters(identifier: str) -> Iterator[str]:
    """The parts of a test's identifier behind the bracket; of a path, the name of its file."""
    for part in identifier.removesuffix("]").split("-"):
        yield Path(part).stem if part.endswith(".yaml") else part


def _outcome(case: ElementTree.Element) -> str:
    kinds = {child.tag for child in case}
    return "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"


# ---------------------------------------------------------------- the page


def families() -> str:
    """A table of the families: what each is in transformers, and what it makes of one picture."""
    rows = [["`model.backbone.name`", "class of transformers", "a checkpoint", "image tokens", "packed rows"]]
    for name in BUILTIN:
        family = get_backbone(name)
        patches = family.patch_map(PICTURE)
        cells = [f"`{name}`", f"`{class_name(family.model_class)}`", f"`{family.hub_id}`", str(len(patches))]
        rows.append([*cells, "yes" if family.packs else "no: padded"])
    return _table(rows)


def recorded() -> str:
    """One line: when, and with what, the results were recorded."""
    run = _read()
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    return f"Recorded on {run['date']}: Python {run['python']}, {run['platform']}, {versions}."


def summary() -> str:
    """A table with the tests by folder, and for each family how many of their cases passed."""
    found = _read()["claims"]
    rows = [["tests", *(f"`{name}`" for name in BUILTIN)]]
    for folder, members in groupby(found, _folder):
        rows.append([f"[{folder}](#{folder})", *_cells(list(members))])
    return _table([*rows, ["all", *_cells(found)]])


def results() -> str:
    """A section per folder of tests, with every claim and how many cases of each family passed."""
    return "\n".join(_sections())


def _sections() -> Iterator[str]:
    for folder, of_folder in groupby(_read()["claims"], _folder):
        yield f"### {folder}\n"
        for file, members in groupby(of_folder, lambda claim: claim["file"]):
            yield f"{_subject(file)} (`{file}`)\n"
            rows = [["claim", *(f"`{name}`" for name in BUILTIN)]]
            rows += [[_sentence(claim["test"]), *_cells([claim])] for claim in members]
            yield _table(rows)


def _cells(found: Sequence[Mapping[str, Any]]) -> list[str]:
    return [_cell([claim["families"].get(name, {}) for claim in found]) for name in BUILTIN]


def _cell(counts: Sequence[Mapping[str, int]]) -> str:
    """How many cases passed, and how many of them did not; a dash where there are none."""
    passed, failed, skipped = (sum(one.get(outcome, 0) for one in counts) for outcome in OUTCOMES)
    told = [str(passed)] if passed else []
    told += [f"**{failed} failed**"] if failed else []
    told += [f"{skipped} not run"] if skipped else []
    return ", ".join(told) or "–"


def _folder(claim: Mapping[str, Any]) -> str:
    return str(claim["file"].split("/")[1])


def _subject(file: str) -> str:
    """What a file of tests says that it is about; its name where it is no more."""
    path = ROOT / file
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else None
    return (docstring or file).partition("\n")[0]


def _sentence(test: str) -> str:
    words = re.sub("_+", " ", test.removeprefix("test_"))
    return words[:1].upper() + words[1:]


def _read() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body]) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
