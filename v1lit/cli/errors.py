"""How the command line ends: a mistake or a failure in one or two lines, a bug with its traceback.

Exit codes: 0 done, 1 the run failed, 2 the user's mistake, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from v1lit.cli.failures import explain
from v1lit.cli.tried_versions import newer_line
from v1lit.errors import FAILURE, MISTAKE, did_you_mean
from v1lit.paths import expand_path

LONGEST = 600
"""Characters of a message that are shown; `--debug` shows the whole."""


class UserError(Exception):
    """A person's mistake, in one or two lines: what was given, what is allowed, and where."""

    exit_code = MISTAKE


class RunFailed(Exception):  # noqa: N818  # as RunStopped
    """Work that failed, in words, with the exit code: 1, or 2 for a mistake that came to light late."""

    def __init__(self, message: str, exit_code: int = FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def two_lines(text: str) -> str:
    """`text` on at most two lines of at most `LONGEST` characters each; what is cut out is the middle."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if len(lines) > 2:
        lines = [" ".join(lines)]
    half = LONGEST // 2
    return "\n".join(line if len(line) <= LONGEST else f"{line[:half]}…{line[1 - half :]}" for line in lines)


def guard(command: Callable[[], int | None], debug: bool = False) -> int:
    """Run `command`, print a mistake or a failure as one or two lines, and return the exit code.

    What `explain` does not know is a bug and passes through.
    """
    try:
        return command() or 0
    except KeyboardInterrupt:
        return _stopped()
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # how the Trainer ends after Ctrl-C
            return _stopped()
        raise
    except BrokenPipeError:  # `v1lit list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        told = explain(error)
        if told is None and (line := newer_line()):  # a bug may be that a dependency changed
            sys.stderr.write(f"{line}\n")
        if debug or told is None:
            raise
        sys.stderr.write(f"error: {two_lines(told.message)}\n")
        return told.code


def _stopped() -> int:
    sys.stderr.write("stopped by Ctrl-C\n")
    return 130


def a_path(text: str) -> str:
    """The type of an option that is a path: `~` and variables in it are expanded."""
    try:
        return expand_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class Parser(argparse.ArgumentParser):
    """A parser of arguments whose mistakes take one or two lines and name the nearest option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add_locations(self) -> None:
        """The positional arguments of a command that reads shards, one or more, as `locations`."""
        what = "folder, tar file or pattern, local or URL"
        self.add_argument("locations", metavar="location", type=a_path, nargs="+", help=what)

    def add_work(self, workers: str = "processes; one per core when not given") -> None:
        """The options of a command that works through many files: `--workers` and `--no-progress`."""
        self.add_argument("--workers", type=int, help=workers)
        self.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")

    def read_keywords(self, argv: Sequence[str]) -> dict[str, Any]:
        """Parse `argv` to the keyword arguments of the function that does the work; raises UserError."""
        return {name: value for name, value in vars(self.read(argv)).items() if name != "debug"}

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse `argv`; raises UserError."""
        options, unknown = self.read_with_changes(argv)
        self.refuse(unknown)
        return options

    def read_with_changes(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parse `argv`, and return the words that are no options of ours: they change keys of a recipe."""
        return self.parse_known_args(list(argv))

    def refuse(self, unknown: Sequence[str]) -> None:
        """Raise UserError for the first of these words, if there is one."""
        if unknown:
            names = [name for action in self._actions for name in action.option_strings]
            word = unknown[0].partition("=")[0]
            raise UserError(
                f"{self.prog} does not take {word!r}{did_you_mean(word, names)}\nallowed: {', '.join(names)}"
            )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}\nsee {self.prog} --help")
