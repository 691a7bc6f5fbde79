"""What v1lit prints is text as it is: nothing in it is read as rich's markup."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from v1lit.console import screen, text_column

PACKAGE = Path(__file__).resolve().parents[1] / "v1lit"
NAMES = ("a[bold]2", "o[/x]", "[link=x]y[/]", ":key: 7", "[1, 2]", "\\[b]")


def shown(console: Console, *things: object) -> str:
    console.file = io.StringIO()
    console.print(*things)
    return console.file.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_line_and_a_table_show_names_as_they_are(name: str) -> None:
    table = Table(name, title=name)
    table.add_row(name)
    assert name in shown(screen(width=80), name)
    assert shown(screen(width=80), table).count(name) == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_bar_shows_names_as_they_are(name: str) -> None:
    bar = Progress(text_column("{task.description}"), console=screen(width=80), auto_refresh=False)
    bar.add_task(name)
    assert name in shown(bar.console, bar.get_renderable())


def calls(path: Path) -> Iterator[tuple[str, set[str | None]]]:
    """Name and keywords of every call in a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield name, {one.arg for one in node.keywords}


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "console.py"]
ELSEWHERE = {"Console", "TextColumn", "get_console", "from_markup", "print_json"}
"""What only `v1lit.console` may call."""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_consoles_and_texts_of_bars_are_made_in_one_place(path: Path) -> None:
    bars = "from rich.progress import" in path.read_text(encoding="utf-8")
    for name, keywords in calls(path):
        assert name not in ELSEWHERE, "take it from v1lit.console"
        assert "markup" not in keywords, "take screen() or text_column() from v1lit.console"
        assert not (bars and name == "Progress") or "console" in keywords, "give it console=screen()"
