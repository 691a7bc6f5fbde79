"""What the site says is made of the code, or held to it: keys, messages, what was verified of a family."""

from __future__ import annotations

import ast
import json
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from v1lit.backbones.registry import BUILTIN
from v1lit.cli.main import COMMANDS
from v1lit.cli.schema import leaves

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {page.name: page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md"))}
OF_KEYS = ("backbones.md", "coming_from.md", "index.md", "keys.md", "start.md", "troubleshooting.md")
"""Pages on which whatever looks like a key is one."""
CALLED = ("v1lit", "lightning", "git")
REPORT = """<testsuites><testsuite>
<testcase classname="tests.backbones.test_a" name="test_a_claim[llava-left]"/>
<testcase classname="tests.backbones.test_a" name="test_a_claim[llava-right]"><failure/></testcase>
<testcase classname="tests.backbones.test_a" name="test_a_claim[qwen2_vl-left]"><skipped/></testcase>
<testcase classname="tests.backbones.test_a" name="test_of_two[llava-qwen2_vl]"/>
<testcase classname="tests.backbones.test_a" name="test_of_none"/>
<testcase classname="tests.e2e.test_b" name="test_trains[/somewhere/recipes/tiny_llava.yaml]"/>
</testsuite></testsuites>"""
NAMES = {"llava": "llava", "qwen2_vl": "qwen2_vl", "tiny_llava": "llava"}


@pytest.fixture(scope="module")
def hooks() -> Iterator[ModuleType]:
    """`tools/docs/hooks.py`, imported as mkdocs does it."""
    sys.path.insert(0, str(ROOT / "tools/docs"))
    yield import_module("hooks")
    sys.path.remove(str(ROOT / "tools/docs"))


def codes(page: str) -> list[str]:
    """What stands between backticks on a page, outside of fenced blocks."""
    prose = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`]+)`", prose)


# ---------------------------------------------------------------- a broken link ends the build


def test_a_broken_link_or_anchor_ends_the_build() -> None:
    """As tried with mkdocs, which is not part of what developers install."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert config["strict"] is True
    assert set(config["validation"]["nav"]) == {"omitted_files", "not_found", "absolute_links"}
    assert set(config["validation"]["links"]) == {
        *("not_found", "anchors", "absolute_links", "unrecognized_links"),
    }
    assert {word for group in config["validation"].values() for word in group.values()} == {"warn"}


# ---------------------------------------------------------------- what is made


def test_every_page_names_what_is_made_and_nothing_is_made_for_nobody(hooks: ModuleType) -> None:
    named = [name for page in PAGES.values() for name in hooks.LINE.findall(page)]
    assert sorted(named) == sorted(hooks.MADE)


def test_a_line_of_a_page_becomes_what_is_made_of_it(
    hooks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hooks.MADE, "families", lambda: "| a table |")
    page = "Before\n\n<!-- made: families -->\n\nbehind\n"
    assert hooks.on_page_markdown(page, page=None) == "Before\n\n| a table |\n\nbehind\n"
    with pytest.raises(KeyError, match="nobody"):
        hooks.on_page_markdown("<!-- made: nobody -->")


def test_a_bar_in_code_is_escaped_for_github_alone(hooks: ModuleType) -> None:
    page = "| `<\\|region_1\\|>` | a \\| b |\n"
    assert hooks.on_page_markdown(page) == "| `<|region_1|>` | a \\| b |\n"


def test_every_key_is_on_its_page_once_with_values_default_and_meaning(hooks: ModuleType) -> None:
    made = hooks.MADE["every key"]()
    assert re.findall(r'<span id="([\w.]+)">', made) != []
    assert sorted(re.findall(r'<span id="([\w.]+)">', made)) == sorted(key for key, _ in leaves())
    assert re.search(r"`model\.optimizer\.lr`</span> \| a number \| `3e-05` \| Peak learning rate", made)
    assert re.search(r"`model\.pointer\.gate`</span> \| true or false \| `false` \| Learn g", made)
    sections = re.findall(r"^## `?([\w. ]+)`?$", made, re.MULTILINE)
    assert len(set(sections)) == len(sections)
    rows = [line for line in made.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4, 5}  # three columns, or four


def test_a_cell_holds_no_mark_of_a_table_and_no_html(hooks: ModuleType) -> None:
    plain = sys.modules["keys"]._plain
    assert plain("a | b <c> `<d>`") == r"a \| b &lt;c> `<d>`"


# ---------------------------------------------------------------- what was verified


def test_a_case_counts_for_the_one_family_that_it_names(hooks: ModuleType) -> None:
    found = sys.modules["verified"].claims([REPORT], NAMES)
    assert [(claim["file"], claim["test"]) for claim in found] == [
        ("tests/backbones/test_a.py", "test_a_claim"),
        ("tests/e2e/test_b.py", "test_trains"),
    ]
    assert found[0]["families"] == {
        "llava": {"passed": 1, "failed": 1},
        "qwen2_vl": {"skipped": 1},
    }
    assert found[1]["families"] == {"llava": {"passed": 1}}


def test_the_page_says_what_passed_what_failed_and_what_was_not_run(
    hooks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = sys.modules["verified"]
    monkeypatch.setattr(verified, "FILE", tmp_path / "verified.json")
    verified.record(verified.FILE, REPORT)
    column = {name: index + 2 for index, name in enumerate(BUILTIN)}
    rows = [line.split("|") for line in hooks.MADE["results"]().splitlines() if line.startswith("| A claim ")]
    assert rows[0][column["llava"]].strip() == "1, **1 failed**"
    assert rows[0][column["qwen2_vl"]].strip() == "1 not run"
    assert rows[0][column["internvl"]].strip() == "–"
    summary = hooks.MADE["tests by family"]().splitlines()
    assert [row.split("|")[column["llava"]].strip() for row in summary[2:]] == [
        "1, **1 failed**",
        "1",
        "2, **1 failed**",
    ]
    assert "torch" in hooks.MADE["tests recorded"]()


def test_names_of_families_and_of_their_recipes_count(hooks: ModuleType) -> None:
    names = sys.modules["verified"]._names()
    assert {names[name] for name in BUILTIN} == set(BUILTIN)
    assert names["tiny_internvl"] == "internvl"
    assert names["qwen_v1g"] == "qwen2_5_vl"


def test_what_is_recorded_is_of_tests_and_says_when() -> None:
    recorded = json.loads((DOCS / "verified.json").read_text(encoding="utf-8"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", recorded["date"])
    assert recorded["claims"]
    assert {family for claim in recorded["claims"] for family in claim["families"]} <= set(BUILTIN)


def test_every_family_is_in_the_table_of_families(hooks: ModuleType) -> None:
    made = hooks.MADE["families"]()
    assert all(f"| `{name}` |" in made for name in BUILTIN)


# ---------------------------------------------------------------- what is written is held to the code


def groups() -> dict[str, bool]:
    """Keys and groups of keys -> whether anything may stand below."""
    found = {key: "dict" in str(kind) for key, kind in leaves()}
    for key in list(found):
        while "." in key:
            key = key.rpartition(".")[0]
            found.setdefault(key, False)
    return found


@pytest.mark.parametrize("page", OF_KEYS)
def test_every_key_that_a_page_names_exists(page: str) -> None:
    known = groups()
    for code in codes(page):
        match = re.match(r"(?:--)?((?:model|data|trainer|run)\.[\w.]*\w|seed_everything)(?![\w(/])", code)
        if match is None or "(" in code:
            continue
        key = match[1]
        while key not in known and "." in key:
            key = key.rpartition(".")[0]
        assert key == match[1] or known[key], f"{page}: {code}"


@pytest.mark.parametrize("page", OF_KEYS)
def test_every_command_and_part_that_a_page_names_exists(page: str) -> None:
    for code in codes(page):
        if code.startswith("v1lit "):
            assert code.split()[1] in COMMANDS, f"{page}: {code}"
        if code.startswith(("configs/", "recipes/", "tests/", "tools/")):
            assert (ROOT / code).exists(), f"{page}: {code}"


def test_every_message_that_is_quoted_is_one_of_v1lits() -> None:
    quoted = [
        code
        for code in codes("troubleshooting.md")
        if code.count(" ") >= 3
        and code.split()[0] not in CALLED
        and not code.startswith(("--", "[", "model."))
    ]
    assert len(quoted) > 20
    said = [
        node.value
        for path in (ROOT / "v1lit").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert [code for code in quoted if not any(code in text for text in said)] == []


def test_the_picture_of_the_mechanism_is_described_and_fits_a_page() -> None:
    (alt,) = re.findall(r"!\[([^\]]+)\]\(images/mechanism\.svg\)", PAGES["mechanism.md"])
    assert all(word in alt for word in ("decoder", "softmax", "pointer head", "copied"))
    picture = ET.parse(DOCS / "images/mechanism.svg").getroot()
    assert int(picture.attrib["width"]) <= 800
    assert picture.attrib["viewBox"] == f"0 0 {picture.attrib['width']} {picture.attrib['height']}"
