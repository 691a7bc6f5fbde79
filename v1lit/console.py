"""The screen: what v1lit prints is text, never markup, whatever names of folders and files hold.

rich takes `a[bold]2` for `a2` in bold, `:key:` for a picture, and raises an error for `x[/q]`. So consoles
and the texts of progress bars are made here, and nowhere else.
"""

from __future__ import annotations

from typing import Literal

from rich.console import Console as Console
from rich.progress import TextColumn


def screen(*, stderr: bool = False, quiet: bool = False, width: int | None = None) -> Console:
    """A console that shows every text unchanged, also in tables and bars; colours only where asked for."""
    return Console(stderr=stderr, quiet=quiet, width=width, markup=False, emoji=False, highlight=False)


def text_column(text: str, justify: Literal["left", "right"] = "left") -> TextColumn:
    """A column of a progress bar: `text` with its {fields} filled in, and otherwise unchanged."""
    return TextColumn(text, markup=False, justify=justify)
