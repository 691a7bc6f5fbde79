"""Why jsonargparse does not take a class and its arguments, picked out of its message."""

from __future__ import annotations

import inspect
import re
import sys
from itertools import takewhile
from typing import Any

from lightning.pytorch import callbacks, loggers, plugins, profilers, strategies

from v1lit.errors import did_you_mean

PROBLEM = re.compile(r"^( *)(?:- )?Problem with given class_path '([^']+)':", re.M)


def reason_in(problem: str) -> str:
    """What is wrong with a class path or its `init_args`, or an empty text where it is about something else.

    The message lists every type that the value could have had, and says of each why it has not.
    """
    if (reason := _of_a_class(problem)) is not None:
        return reason
    if (path := re.search(r"Expected a dot import path string: (\S+)", problem)) is not None:
        places = (callbacks, loggers, plugins, profilers, strategies)
        hint = did_you_mean(path[1], [name for place in places for name in _classes(place)])
        return f"{path[1]!r} is not the path of a class, module.Class{hint}"
    said = re.search(
        r"Import path .* does not correspond to .*|Option '.*' is not accepted|Import.*fail.*", problem
    )
    if said is not None:
        return said[0]
    # Of all types, the one that it could have been says something else than that it is not this type.
    bullets = re.findall(
        r"^ *- (?!Expected a <|Not a valid subclass|Does not validate|an? )(.*)$", problem, re.M
    )
    return bullets[0] if bullets else ""


def _of_a_class(problem: str) -> str | None:
    """The reason below the first `Problem with given class_path`."""
    if (start := PROBLEM.search(problem)) is None:
        return None
    indent, lines = len(start[1]), problem[start.end() :].splitlines()[1:]
    below = takewhile(lambda line: len(line) - len(line.lstrip()) > indent + 2, lines)
    reason = re.sub(r'Parser key "([^"]+)": ', r"\1: ", " ".join(line.strip() for line in below))
    return f"{start[2]}: {reason}{_hint(start[2], reason)}"


def _hint(path: str, reason: str) -> str:
    """What may have been meant."""
    module, _, _ = path.rpartition(".")
    if (name := re.search(r"has no attribute '(\w+)'", reason)) is not None:
        return did_you_mean(name[1], _classes(sys.modules.get(module)))
    if (option := re.search(r"Option '(\w+)' is not accepted", reason)) is not None:
        return did_you_mean(option[1], _parameters(path))
    if reason.startswith("No module named"):
        return "; modules are looked for in the current folder, in PYTHONPATH and among what is installed"
    return ""


def _classes(module: object) -> list[str]:
    return [] if module is None else [name for name, _ in inspect.getmembers(module, inspect.isclass)]


def _parameters(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    made: Any = getattr(sys.modules.get(module), name, None)  # it has been imported by who complains
    return list(inspect.signature(made).parameters) if inspect.isclass(made) else []
