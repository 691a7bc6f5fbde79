"""Errors that carry facts: which option is wrong, what it was, what is allowed, how a command ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from typing import Any, ClassVar, Literal, Protocol, get_args, get_origin, get_type_hints

MISTAKE, FAILURE, GAVE_UP = 2, 1, 3
"""Exit codes of a command: something was asked for that cannot be done, doing it failed, or failed so often
without progress that it is not begun again.

A class of v1lit's exceptions can have its own as `exit_code`; else a ValueError is a mistake, and all
others are failures.
"""

LONGEST_GIVEN = 200
"""Characters of a value that a message repeats."""
MOST_NAMED = 20
"""Longest list of allowed names that a message spells out."""


class OptionError(ValueError):
    """An option has a value that it cannot have.

    Args:
        field: name of the option in its group, with dots for one inside of it.
        given: its value.
        why: what is wrong with that, or what is allowed.
        group: where the options stand in a recipe; the command line knows it exactly.
    """

    def __init__(self, field: str, given: object, why: str, group: str = "") -> None:
        super().__init__(field, given, why, group)
        self.field, self.given, self.why, self.group = field, given, why, group

    @property
    def key(self) -> str:
        """The option with its group, as in a recipe."""
        return f"{self.group}.{self.field}".strip(".")

    def told(self, origin: str = "") -> str:
        """The message, with the file in which the option stands."""
        given = "null" if origin and self.given is None else repr(self.given)
        given = given if len(given) <= LONGEST_GIVEN else f"{given[:LONGEST_GIVEN]}…"
        return f"{self.key} is {given}{f' ({origin})' if origin else ''}; {self.why}"

    def __str__(self) -> str:
        return self.told()


class Options(Protocol):
    """An object whose attributes are options of one group of a recipe."""

    GROUP: ClassVar[str]
    """Where they stand in a recipe; from Python, errors name it."""


@contextmanager
def named(key: str) -> Iterator[None]:
    """Put `key` before what a ValueError says; of an OptionError it is the group of its option."""
    try:
        yield
    except OptionError as error:
        raise OptionError(error.key, error.given, error.why, key) from error
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def one_line(error: BaseException) -> str:
    """The message of an error on one line, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def did_you_mean(name: object, names: Iterable[str], prefix: str = "") -> str:
    """`; did you mean 'x'?` for the one of `names` most like `name`, with `prefix`, or an empty text."""
    close = get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f"; did you mean {prefix + close[0]!r}?" if close else ""


def name_allowed(name: object, names: Iterable[str]) -> str:
    """What may stand in place of `name`: `did you mean 'x'? allowed: x, y, z`."""
    names = list(names)
    return f"{did_you_mean(name, names)} allowed: {first_of(names, MOST_NAMED) or 'none'}".lstrip("; ")


def first_of(names: Sequence[str], most: int = 3) -> str:
    """The first N names, and how many more there are: `a, b, c and 4 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def explain_unknown(what: str, name: object, names: Iterable[str]) -> str:
    """One line for a name that does not exist: what was given, the nearest match, what is allowed."""
    return f"unknown {what} {name!r}; {name_allowed(name, sorted(names))}"


def check_fields(options: Options, names: Iterable[str], allowed: Callable[[Any], bool], why: str) -> None:
    """Raises OptionError, with `why`, for a field of `options` that is neither None nor `allowed`."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not allowed(value):
            raise OptionError(name, value, why, options.GROUP)


def check_least(options: Options, least: int, *names: str) -> None:
    """Raises OptionError for a number of `options` that is below `least`; None is allowed."""
    check_fields(options, names, lambda number: number >= least, f"give {least} or more")


def check_choices(options: Options) -> None:
    """Raises OptionError for an option that has none of the values which its `Literal` annotation names.

    Args:
        options: made by a constructor whose annotated parameters are its attributes.
    """
    for name, allowed in _choices(type(options)).items():
        value = getattr(options, name)
        several = isinstance(value, list | tuple)
        for item in value if several else [value]:
            if item not in allowed:
                why = f"{f'no {item!r}; ' if several else ''}{name_allowed(item, allowed)}"
                raise OptionError(name, value, why, options.GROUP)


@cache
def _choices(kind: Any) -> dict[str, tuple[Any, ...]]:
    owner = next(base for base in kind.__mro__ if "GROUP" in vars(base))  # subclasses may take other options
    hints = get_type_hints(vars(owner)["__init__"]).items()
    items = {name: get_args(hint)[0] if get_origin(hint) is list else hint for name, hint in hints}
    return {name: get_args(item) for name, item in items.items() if get_origin(item) is Literal}
