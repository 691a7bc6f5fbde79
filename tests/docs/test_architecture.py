"""The page on the architecture speaks of files, functions and rooms that exist."""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.structure_tool import tool
from test_layers import GROUND, MAY_IMPORT

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "v1lit"
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
DESIGN = (ROOT / "docs/design.md").read_text(encoding="utf-8")
REFERENCES = sorted(set(re.findall(r"`([\w/]+\.py(?::[\w.]+)?)`", PAGE + DESIGN)))
WALKS = tuple(
    f"Follow a{what}" for what in ("n image", " region", " recipe", " checkpoint", " rank", " pointer")
)
PICTURE = ROOT / "docs/images/flow.svg"


def section(title: str) -> str:
    return re.split(r"^##+ ", PAGE.partition(f" {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def names(body: list[ast.stmt], inside: str = "") -> Iterator[str]:
    """Dotted names of what a module or a class defines."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield inside + node.name
        if isinstance(node, ast.ClassDef):
            yield from names(node.body, f"{inside}{node.name}.")
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            yield inside + ast.unparse(target)
        if isinstance(node, ast.If):
            yield from names([*node.body, *node.orelse], inside)


@pytest.mark.parametrize("reference", REFERENCES)
def test_every_file_and_function_that_is_named_exists(reference: str) -> None:
    file, _, name = reference.partition(":")
    path = (ROOT if file.startswith(("tests/", "tools/")) else PACKAGE) / file
    assert path.is_file()
    if name:
        assert name in set(names(ast.parse(path.read_text(encoding="utf-8")).body))


@pytest.mark.parametrize("walk", WALKS)
def test_every_step_of_a_walk_has_a_file(walk: str) -> None:
    steps = re.split(r"^\d+\. ", section(walk), flags=re.MULTILINE)[1:]
    assert len(steps) >= 5
    assert sum(".py:" in step for step in steps) >= len(steps) - 1


@pytest.mark.parametrize(("package", "block"), [("v1lit", 0), ("v1lit.data", 1)])
def test_the_house_has_every_room_on_its_floor(package: str, block: int) -> None:
    listed = re.findall(r"```text\n(.*?)```", section("The house"), re.DOTALL)[block]
    rooms = {room: int(floor) for floor, room in re.findall(r"^ *(\d+) (\w+) ", listed, re.MULTILINE)}
    graph = tool.rooms(tool.import_graph(tool.read_modules(PACKAGE)), package)
    assert rooms == tool.floors(graph)


def test_the_table_of_imports_is_the_one_that_is_tested() -> None:
    rows = re.findall(r"^\| `(\w+)`.*? \| (.*) \|$", section("The house"), re.MULTILINE)
    may = {package: set(re.findall(r"`(\w+)`", cell)) for package, cell in rows}
    assert may == {
        package: {name.partition(".")[0] for name in others} - {"__version__", ""}
        for package, others in MAY_IMPORT.items()
    }
    ground = {room for room in GROUND if f" {room} " in section("The house")}
    assert ground == set(GROUND)


def test_all_state_of_modules_is_listed() -> None:
    """Caches of functions, and names that functions bind in their module."""
    listed = set(re.findall(r"`([\w/]+\.py)", section("State that outlives a call")))
    kept = re.compile(r"^@(?:functools\.)?(?:lru_)?cache\b|^    global |^_\w+: dict\[.*= \{\}$", re.MULTILINE)
    holders = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if kept.search(path.read_text(encoding="utf-8"))
    }
    assert holders - listed == set()


# ---------------------------------------------------------------- the picture


def test_the_picture_is_described_and_fits_a_page() -> None:
    (alt,) = re.findall(r"!\[([^\]]+)\]\(images/flow\.svg\)", PAGE)
    assert all(stage in alt for stage in ("Plan", "Read", "Learn", "Answer"))
    picture = ET.parse(PICTURE).getroot()
    assert int(picture.attrib["width"]) <= 800
    assert picture.attrib["viewBox"] == f"0 0 {picture.attrib['width']} {picture.attrib['height']}"


def test_classes_in_the_picture_exist() -> None:
    texts = [element.text or "" for element in ET.parse(PICTURE).iter() if element.tag.endswith("text")]
    words = set(re.findall(r"\b(?:[A-Z][a-z]+){2,}\b", " ".join(texts)))
    classes = re.findall(
        r"^class (\w+)",
        "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")),
        re.MULTILINE,
    )
    assert {"MicroBatchPlan", "PatchMap", "PointerMemory"} <= words <= set(classes)
