"""What the tests were run with is recorded once, and told wherever the installed versions are newer."""

from __future__ import annotations

import importlib.util
import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from v1lit.cli import tried_versions as tried_module
from v1lit.cli.doctor import version_lines
from v1lit.cli.errors import UserError, guard
from v1lit.cli.failures import Told
from v1lit.cli.tried_versions import MAJOR, Tried, newer_line, remarks, tried

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {"passed": 10, "failed": 0, "skipped": 1, "seconds": 5}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """`tools/versions.py`, which is no module of v1lit."""
    spec = importlib.util.spec_from_file_location("tools_versions", ROOT / "tools/versions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty record in place of v1lit's own."""
    path = tmp_path / "tried_versions.json"
    path.write_text('{"runs": {}}')
    monkeypatch.setattr(tried_module, "FILE", path)
    tried.cache_clear()
    yield path
    tried.cache_clear()


def note(
    path: Path, name: str, failed: int = 0, python: str = platform.python_version(), **versions: str
) -> None:
    content = json.loads(path.read_text())
    run = {**COUNTS, "failed": failed, "date": "2026-01-31", "python": python, "platform": "Linux x86_64"}
    content["runs"][name] = {**run, "versions": versions}
    path.write_text(json.dumps(content))
    tried.cache_clear()


# ---------------------------------------------------------------- the record and its page


def test_the_page_is_what_the_record_renders_to(tool: ModuleType) -> None:
    runs = json.loads(tool.FILE.read_text(encoding="utf-8"))["runs"]
    assert tool.PAGE.read_text(encoding="utf-8") == tool.render(runs), "run: python tools/versions.py render"
    assert tried_module.FILE == tool.FILE


def test_a_run_is_recorded_with_the_versions_of_the_interpreter_that_records(
    tool: ModuleType, recorded: Path
) -> None:
    tool.record(recorded, "newest", COUNTS)
    run = json.loads(recorded.read_text())["runs"]["newest"]
    assert run["python"] == platform.python_version()
    assert run["versions"]["transformers"] == version("transformers")
    assert run["versions"]["torch"] == version("torch").partition("+")[0]
    assert "pytest" not in run["versions"]
    assert {name: run[name] for name in COUNTS} == COUNTS
    assert not list(recorded.parent.glob(".*"))


def test_a_run_takes_the_place_of_the_last_one_of_its_name_only(tool: ModuleType, recorded: Path) -> None:
    note(recorded, "locked", torch="2.14.0")
    note(recorded, "newest", torch="1.0")
    tool.record(recorded, "newest", COUNTS)
    tool.record(recorded, "oldest", COUNTS)
    runs = json.loads(recorded.read_text())["runs"]
    assert list(runs) == ["oldest", "locked", "newest"]
    assert runs["locked"]["versions"] == {"torch": "2.14.0"}
    assert runs["newest"]["versions"]["torch"] == version("torch").partition("+")[0]


def test_the_page_has_a_column_for_every_run(tool: ModuleType, recorded: Path) -> None:
    note(recorded, "oldest", python="3.10.1", torch="2.11.0", timm="1.0.20")
    note(recorded, "newest", failed=2, python="3.13.0", torch="2.15.0")
    page = tool.render(json.loads(recorded.read_text())["runs"])
    assert "| oldest | 2026-01-31 | 3.10.1 | Linux x86_64 | 10 | 0 | 1 | 5 |" in page
    assert "| newest | 2026-01-31 | 3.13.0 | Linux x86_64 | 10 | 2 | 1 | 5 |" in page
    assert "| torch | 2.11.0 | 2.15.0 |" in page
    assert "| timm | 1.0.20 |  |" in page
    assert "No run is recorded yet" in tool.render({})


@pytest.mark.slow
def test_the_counts_are_those_of_pytest(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.fixture\ndef broken(): raise KeyError\n"
        "@pytest.mark.parametrize('n', range(5))\ndef test_passes(n): pass\n"
        "@pytest.mark.parametrize('n', range(2))\ndef test_fails(n): assert False\n"
        "@pytest.mark.skip\ndef test_skipped(): pass\n"
        "def test_error(broken): pass\n"
    )
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    code, counts = tool.run_tests(["-q", "--numprocesses=0", "-p", "no:cacheprovider", "test_some.py"])
    assert code == 1
    assert {**counts, "seconds": 0} == {"passed": 5, "failed": 3, "skipped": 1, "seconds": 0}
    with pytest.raises(SystemExit):
        tool.run_tests(["--numprocesses=0", "no_such_file.py"])


# ---------------------------------------------------------------- newer and older


@pytest.mark.parametrize(
    ("installed", "remark"),
    [
        ("5.18.0", ""),
        ("5.20.1", ""),
        ("5.24.0", ""),
        ("5.24", ""),
        ("5.24.0+cu130", ""),
        ("5.24.1", "newer than tested (5.24.0)"),
        ("5.25.0.dev0", "newer than tested (5.24.0)"),
        ("5.100.0", "newer than tested (5.24.0)"),
        ("5.17.0", "older than tested (5.18.0)"),
        ("5.18.0rc1", "older than tested (5.18.0)"),
        ("not installed", ""),
        ("somebody's own", ""),
    ],
)
def test_newer_and_older_are_by_version(installed: str, remark: str) -> None:
    assert Tried("5.18.0", "5.24.0").remark("transformers", installed) == remark


def test_of_python_only_the_minor_version_counts() -> None:
    assert Tried("3.10.20", "3.13.1").remark("python", "3.13.9") == ""
    assert Tried("3.10.20", "3.13.1").remark("python", "3.10.2") == ""
    assert Tried("3.10.20", "3.13.1").remark("python", "3.14.0") == "newer than tested (3.13.1)"


def test_the_range_is_of_all_runs_without_a_failed_test(recorded: Path) -> None:
    note(recorded, "oldest", torch="2.9.0")
    note(recorded, "locked", torch="2.14.0")
    note(recorded, "newest", failed=1, torch="2.15.0")
    assert tried()["torch"] == Tried("2.9.0", "2.14.0")


def test_a_run_tells_in_one_line_what_is_newer_and_where_to_look(recorded: Path) -> None:
    note(recorded, "newest", torch="1.0", transformers="1.2.3", numpy="1.0")
    line = newer_line()
    assert line is not None
    assert "\n" not in line
    assert f"transformers {version('transformers')} (1.2.3)" in line
    assert "torch" in line
    assert "numpy" not in line  # no major one; the doctor shows it
    for words in (
        "v1lit doctor --self-test",
        "docs/versions.md",
        "pip install --constraint requirements.lock",
    ):
        assert words in line


def test_a_run_tells_nothing_where_nothing_is_newer(recorded: Path) -> None:
    assert newer_line() is None
    note(recorded, "newest", **{**dict.fromkeys(MAJOR, "99.0"), "python": "3.99"})
    assert newer_line() is None


def test_a_bug_tells_it_as_well_and_a_mistake_does_not(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explain(error: Exception) -> Told | None:
        return Told(2, str(error)) if isinstance(error, UserError) else None

    def broken() -> None:
        raise TypeError("unexpected argument")

    def mistaken() -> None:
        raise UserError("no such key")

    monkeypatch.setattr("v1lit.cli.errors.explain", explain)
    note(recorded, "newest", transformers="1.2.3")
    with pytest.raises(TypeError):
        guard(broken)
    assert capsys.readouterr().err == f"{newer_line()}\n"
    assert guard(mistaken) == 2
    assert capsys.readouterr().err == "error: no such key\n"
    note(recorded, "newest", transformers="99.0")
    with pytest.raises(TypeError):
        guard(broken)
    assert capsys.readouterr().err == ""


def test_the_doctor_shows_every_tested_package(recorded: Path) -> None:
    note(recorded, "oldest", python="3.99", transformers="1.2.3", numpy="1.0", pillow="99.0")
    lines = {line.split()[0]: line for line in version_lines() if line}
    assert lines["transformers"].endswith(f"{version('transformers'):<12}newer than tested (1.2.3)")
    assert lines["numpy"].endswith("newer than tested (1.0)")
    assert lines["pillow"].endswith("older than tested (99.0)")
    assert lines["python"].endswith("older than tested (3.99)")
    assert lines["lightning"].split() == ["lightning", version("lightning")]
    assert "oldest (2026-01-31)" in lines["tested"]


def test_a_package_that_is_missing_is_no_error(recorded: Path) -> None:
    note(recorded, "newest", **{"no-such-package": "1.0"})
    assert remarks()["no-such-package"] == ("not installed", "")
