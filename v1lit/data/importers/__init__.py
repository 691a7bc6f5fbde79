"""Importers turn other people's data into folders of shards. Each is one function in one file of its own."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from typing import Any

IMPORTERS = {"v1g": "v1lit.data.importers.v1g:import_v1g"}
"""Name on the command line -> "module:function" with the arguments (source, out, *, ...) -> ImportReport."""


def get_importer(name: str) -> Callable[..., Any]:
    """The import function of that name; its module is imported only now.

    Raises:
        ValueError: no such importer; lists those that exist.
    """
    if name not in IMPORTERS:
        near = difflib.get_close_matches(name, IMPORTERS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"there is no importer {name!r}{hint}; there are: {', '.join(IMPORTERS)}")
    module, function = IMPORTERS[name].split(":")
    return getattr(import_module(module), function)
