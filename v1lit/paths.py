"""Paths as people write them: `~`, `~user`, `$NAME` and `${NAME}` stand for what a shell puts there.

A shell expands only some of what it is given (not `--out=~/x`), and nothing in a YAML file or a Python
string. So every path that enters v1lit goes through `expand_path`, once, where it enters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container
from typing import Any

from v1lit.errors import OptionError, named

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|pipe:")
"""A URL, or a command, which a shell expands."""
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)
_NAMED_AS_PATH = re.compile(r"(^|_)(dir|dirpath|path|folder|file|root)s?$")
_WRITTEN_AS_PATH = re.compile(r"(~|\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\})/", re.ASCII)


def expand_path(path: str | os.PathLike[str], keys: Container[str] = ()) -> str:
    """`path` with the home folder and environment variables put in; URLs and commands stay as they are.

    What exists under the name as it is written is meant by it, unless that begins with `~/`: a file may be
    called `a$b.jpg`.

    Args:
        path: a path, a pattern of paths, or a URL.
        keys: names in `${NAME}` that are no variables of the environment, and stay.

    Raises ValueError for a user that does not exist, and for a variable that is not set or empty.
    """
    text = os.fspath(path)
    if ("$" not in text and not text.startswith("~")) or is_url(text):
        return text
    if not (text == "~" or text.startswith("~/")) and os.path.lexists(text):
        return text

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if match[2] in keys:
            return match[0]
        if not os.environ.get(name):
            state = "empty" if name in os.environ else "not set"
            raise ValueError(f"{text!r} cannot be used: the environment variable {name} is {state}")
        return os.environ[name]

    return _VARIABLE.sub(value, _with_home(text))


def is_url(text: str) -> bool:
    """Whether a text begins as a URL does, or as a command that writes a tar file (`pipe:...`)."""
    return _URL.match(text) is not None


def _with_home(text: str) -> str:
    if not text.startswith("~"):
        return text
    whole = os.path.expanduser(text)
    if whole.startswith("~"):
        user = text.partition("/")[0][1:]
        why = f"there is no user {user!r}" if user else "the home folder is not known (HOME is not set)"
        raise ValueError(f"{text!r} cannot be used: {why}; a name that begins with ~ is written ./{text}")
    return whole


def expand_fields(config: Any) -> None:
    """Expand the fields that a dataclass names in its `PATHS`, in place. Raises ValueError with the name."""
    for name in config.PATHS:
        value = getattr(config, name)
        if value == "":
            raise OptionError(name, value, "give a path, or leave it out", config.GROUP)
        if isinstance(value, str | os.PathLike):
            with named(name):
                object.__setattr__(config, name, expand_path(value))


def expand_within(
    value: Any, name: str = "", change: Callable[[str, str], str] = lambda _, path: expand_path(path)
) -> Any:
    """A copy of the arguments of any class or function, mappings and lists, with the paths in them expanded.

    A path is a text that begins as one (`~/`, `$NAME/`), or whose name ends in dir, path, folder, file, root.

    Args:
        value: an argument, or several by name.
        name: that of the argument.
        change: called with a name and its path, returns the path that stands instead.
    """
    if isinstance(value, dict):
        return {key: expand_within(item, str(key), change) for key, item in value.items()}
    if isinstance(value, list):
        return [expand_within(item, name, change) for item in value]
    if isinstance(value, str) and (_NAMED_AS_PATH.search(name) or _WRITTEN_AS_PATH.match(value)):
        return change(name, value)
    return value
