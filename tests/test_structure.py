"""How v1lit is built stays within limits, and `tools/structure.py` counts right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from helpers.structure_tool import tool

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "v1lit"

LIMITS = {
    # package: rooms, floors, arrows
    "v1lit": (25, 9, 122),  # all packages may use the single files of the two lowest floors
    "v1lit.revisit": (15, 4, 20),
    "v1lit.backbones": (52, 11, 163),
    "v1lit.cli": (60, 12, 148),
    "v1lit.data": (19, 10, 81),
    "v1lit.grounding": (7, 4, 9),
    "v1lit.inference": (19, 12, 41),
    "v1lit.pointer": (18, 7, 37),
    "v1lit.parallel": (14, 4, 12),
    "v1lit.cluster": (11, 4, 11),
    "v1lit.launch": (5, 2, 2),
    "v1lit.plan": (13, 6, 26),
    "v1lit.steering": (7, 3, 8),
    "v1lit.serving": (12, 5, 18),
    "v1lit.demo": (11, 5, 15),
    "v1lit.sweep": (25, 9, 47),
    "v1lit.testing": (7, 3, 9),
    "v1lit.training": (46, 8, 111),
}
"""How many rooms a package may have, on how many floors, and how many arrows may lead from room to room."""
LONGEST_FILE = 384
LONGEST_FUNCTION = 60
CODE_LINES = 63_700
"""Of `v1lit/` without `v1lit/testing/`, which authors of backbones use and no run does. What adds an ability
may raise it; what only rearranges may not."""
ALL_LINES = 64_600

MODULES = tool.read_modules(PACKAGE)
GRAPH = tool.import_graph(MODULES)
PACKAGES = sorted(name for name, path in MODULES.items() if path.name == "__init__.py")


# ---------------------------------------------------------------- v1lit


def test_no_modules_import_each_other() -> None:
    assert tool.circles(GRAPH) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_rooms_of_a_package_import_each_other(package: str) -> None:
    assert tool.circles(tool.rooms(GRAPH, package)) == []


def test_every_package_has_its_limits() -> None:
    assert {name for name in PACKAGES if name.count(".") < 2} == set(LIMITS)


@pytest.mark.parametrize("package", LIMITS)
def test_a_package_has_few_rooms_floors_and_arrows(package: str) -> None:
    rooms = tool.rooms(GRAPH, package)
    sizes = len(rooms), max(tool.floors(rooms).values()), sum(map(len, rooms.values()))
    assert all(size <= limit for size, limit in zip(sizes, LIMITS[package], strict=True)), sizes


def test_files_and_functions_are_short() -> None:
    assert tool.file_sizes(MODULES, PACKAGE)[0].lines <= LONGEST_FILE, tool.file_sizes(MODULES, PACKAGE)[0]
    function = tool.function_sizes(MODULES, PACKAGE)[0]
    assert function.lines <= LONGEST_FUNCTION, function


def test_the_whole_has_not_grown() -> None:
    sizes = tool.file_sizes(MODULES, PACKAGE)
    testing = [size for size in sizes if size.where.startswith("v1lit/testing/")]
    total = sum(size.lines for size in sizes)
    assert total <= ALL_LINES
    assert total - sum(size.lines for size in testing) <= CODE_LINES


# ---------------------------------------------------------------- the tool, on a package made up for it

HOUSE = {
    "__init__.py": "from house.attic import top\n",
    "attic.py": "from house.hall import door\nimport house.cellar.wine\n\ntop = 1\n",
    "hall.py": "def door():\n    from house import kitchen\n    return kitchen\n",
    "kitchen/__init__.py": "",
    "kitchen/stove.py": (
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from house.hall import door\n"
    ),
    "kitchen/__main__.py": "from house.kitchen.stove import door\n",
    "cellar/__init__.py": "",
    "cellar/wine.py": "import os.path\n\nfrom elsewhere.house import attic\n",
}
"""A hall and a kitchen in a circle of rooms that no module shows; an attic above them, and a cellar below."""


def build(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / "house" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "house" / name).write_text(text, encoding="utf-8")
    return folder / "house"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    return build(tmp_path, HOUSE)


def test_imports_in_functions_and_for_types_count_and_others_packages_do_not(house: Path) -> None:
    graph = tool.import_graph(tool.read_modules(house))
    assert graph == {
        "house": {"house.attic"},
        "house.attic": {"house.hall", "house.cellar.wine"},
        "house.hall": {"house.kitchen"},
        "house.kitchen": set(),
        "house.kitchen.stove": {"house.hall"},
        "house.kitchen.__main__": {"house.kitchen.stove"},
        "house.cellar": set(),
        "house.cellar.wine": set(),
    }


def test_rooms_hide_what_is_in_them_and_the_door_is_no_room(house: Path) -> None:
    graph = tool.import_graph(tool.read_modules(house))
    assert tool.rooms(graph, "house") == {
        "attic": {"hall", "cellar"},
        "hall": {"kitchen"},
        "kitchen": {"hall"},
        "cellar": set(),
    }
    assert tool.rooms(graph, "house.kitchen") == {"stove": set(), "__main__": {"stove"}}


def test_a_circle_of_rooms_is_found_where_its_modules_have_none(house: Path) -> None:
    graph = tool.import_graph(tool.read_modules(house))
    assert tool.circles(graph) == []
    assert tool.circles(tool.rooms(graph, "house")) == [["hall", "kitchen"]]


def test_a_circle_of_modules_is_found_through_functions_and_types(tmp_path: Path) -> None:
    package = build(
        tmp_path,
        {
            "__init__.py": "",
            "a.py": "def later():\n    import house.b\n",
            "b.py": "if TYPE_CHECKING:\n    from house.c import name\n",
            "c.py": "from house import a, alone\n",
            "alone.py": "",
            "x.py": "import house.y\n",
            "y.py": "import house.x\n",
        },
    )
    circles = tool.circles(tool.import_graph(tool.read_modules(package)))
    assert circles == [["house.a", "house.b", "house.c"], ["house.x", "house.y"]]


def test_a_room_stands_above_all_it_imports_and_a_circle_on_one_floor(house: Path) -> None:
    rooms = tool.rooms(tool.import_graph(tool.read_modules(house)), "house")
    assert tool.floors(rooms) == {"cellar": 1, "hall": 1, "kitchen": 1, "attic": 2}


def test_a_circle_stands_above_the_highest_room_that_any_of_it_imports() -> None:
    graph = {
        "top": ["a"],
        "a": ["b", "low"],
        "b": ["a", "middle"],
        "middle": ["low"],
        "low": [],
        "beside": ["b"],
    }
    assert tool.floors(graph) == {"top": 4, "a": 3, "b": 3, "middle": 2, "low": 1, "beside": 4}


def test_sizes_are_lines_longest_first(tmp_path: Path) -> None:
    long = "def f():\n    x = 1\n\n    def g():\n        return 2\n\n    return g\n"
    package = build(
        tmp_path, {"__init__.py": "", "a.py": long, "b.py": "class C:\n    async def h(self): ...\n"}
    )
    modules = tool.read_modules(package)
    assert [str(size) for size in tool.file_sizes(modules, package)] == [
        "    7  house/a.py",
        "    2  house/b.py",
        "    0  house/__init__.py",
    ]
    assert [(size.lines, size.where) for size in tool.function_sizes(modules, package)] == [
        (7, "house/a.py:1 f"),
        (2, "house/a.py:4 g"),
        (1, "house/b.py:2 h"),
    ]


def test_the_page_says_all_of_it(house: Path) -> None:
    page = list(tool.report(house))
    assert page[1].split() == ["house", "4", "2", "4", "1", "8", "16"]
    assert page[2].split() == ["house.cellar", "1", "1", "0", "0", "2", "3"]
    assert "circles of modules: 0" in page
