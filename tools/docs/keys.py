"""Every key of a recipe as Markdown, from the same classes that read recipes and that `--help` tells of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from v1lit.cli.key_reference import REQUIRED, Key, keys
from v1lit.cli.schema import describe

LIGHTNING = "What each does here, and what is refused: [The Trainer's arguments](trainer.md)."
"""In place of the meanings of `trainer.*`, which are Lightning's and not ours."""


def every_key() -> str:
    """A section per group of keys, each with a table of key, values, default and meaning."""
    return "\n".join(_sections())


def _sections() -> Iterator[str]:
    groups: dict[str, list[Key]] = {}
    for key in keys():
        root, _, _ = key.name.rpartition(".")
        groups.setdefault(root.partition(".")[0], [])  # before the groups in it
        groups.setdefault(root, []).append(key)
    for group, members in groups.items():
        told = group != "trainer"
        yield f"## `{group}`\n" if group else "## At the top\n"
        if not told:
            yield f"{LIGHTNING}\n"
        yield _row("key", "may be", "default", *(["meaning"] if told else []))
        yield _row(*["---"] * (3 + told))
        for key in members:
            yield _row(*_cells(key)[: 3 + told])
        yield ""


def _cells(key: Key) -> tuple[str, str, str, str]:
    name = f'<span id="{key.name}">`{key.name}`</span>'
    return name, _plain(describe(key.annotation)), _value(key.default), _plain(key.meaning)


def _value(value: Any) -> str:
    if value is REQUIRED:
        return "must be given"
    words = {None: "`null`", True: "`true`", False: "`false`"}
    return words[value] if value is None or isinstance(value, bool) else f"`{_plain(_yaml(value))}`"


def _yaml(value: Any) -> str:
    if isinstance(value, str):
        return value or "''"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_yaml, value))}]"
    return str(value)


def _plain(text: str) -> str:
    """Text that stands in a cell: no mark of a table, and no HTML outside of code."""
    parts = re.split(r"(`[^`]*`)", text.replace("|", r"\|"))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
