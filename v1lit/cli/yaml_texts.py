"""Texts that YAML takes for something else: `1e3`, `~`, `12:30` as the name of a run.

jsonargparse writes a recipe as YAML and reads it with other rules, and reads texts that may be null as YAML
again. So such texts are put aside while it works, and a plain word stands for each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from omegaconf.errors import OmegaConfBaseException

from v1lit.cli.recipe import group_of, read_typed
from v1lit.cli.schema import kinds_of, leaves

_TEXTS = {str, Path, os.PathLike, type(None)}


def is_text(annotation: Any) -> bool:
    """Whether values of a type are texts, and nothing else but null."""
    kinds = set(kinds_of(annotation))
    return str in kinds and kinds <= _TEXTS


class PutAside:
    """The texts that were put aside, by the word that stands for each."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def hide(self, config: dict[str, Any]) -> None:
        """Put words in place of texts in a recipe that has every group."""
        for key in (key for key, annotation in leaves() if is_text(annotation)):
            group, name = group_of(config, key)
            text = group.get(name)
            if isinstance(text, str) and "${" not in text and not _is_plain(text):
                word = f"text-put-aside-{len(self._texts)}-"
                self._texts[word] = text
                group[name] = word

    def restored(self, value: Any, quote: Callable[[str], str] = str) -> Any:
        """`value` with the texts in place of their words."""
        for word, text in self._texts.items() if isinstance(value, str) else ():
            value = value.replace(word, quote(text))
        return value

    def quoted(self, dumped: str) -> str:
        """A recipe as YAML with the texts in place of their words, in quotes."""
        written: str = self.restored(dumped, _in_quotes)
        return written


def _in_quotes(text: str) -> str:
    """A text as YAML, on one line."""
    return "'" + text.replace("'", "''") + "'" if text.isprintable() else json.dumps(text)


def _is_plain(text: str) -> bool:
    """Whether a text is that text in YAML too."""
    try:
        return bool(read_typed(text) == text)
    except (yaml.YAMLError, OmegaConfBaseException):
        return False
