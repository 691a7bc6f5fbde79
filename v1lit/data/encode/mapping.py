"""`data.map`: the user's function between reading and encoding; it changes examples or leaves them out."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from v1lit.data.example import Example, ExampleRef
from v1lit.data.example.images import ImageError
from v1lit.errors import OptionError, did_you_mean

Given = str | Mapping[str, Any]
"""`module.name`, or a mapping with `class_path` and perhaps `init_args`."""


class MapError(RuntimeError):
    """The user's map failed, or gave what is no example; the message names file, line and example."""


class ExampleMap:
    """A callable `Example -> Example | None`, found by its name; None leaves the example out.

    `init_args` are given to a class when it is made, to a function with every call. With a second parameter
    (without a default) it is given a `numpy.random.Generator` that is a function of seed, epoch and index of
    the example: the same for every number of ranks and workers, and in a resumed run. Sent to other
    processes, it is found again there.

    Args:
        given: its name, or `{"class_path": name, "init_args": {...}}`.
        seed: of its generators.

    Raises OptionError where there is no such module or name, it is no callable of one or two arguments, or
    does not take the `init_args`.
    """

    def __init__(self, given: Given, seed: int = 0) -> None:
        self.given, self.seed = given, seed
        try:
            self.name, self.init_args = _parts(given)
            self._found = _find(self.name)
            self._call = _made(self._found, self.init_args)
            self.random = _takes_generator(self._call)
            """Whether it is given a generator: what it makes of an example then differs by epoch."""
        except ValueError as error:
            raise OptionError("map", given, str(error), "data") from error

    def __call__(self, example: Example, shard: str, ref: ExampleRef | None = None) -> Example | None:
        """What becomes of one example. `ref` is where the epoch reads it, which a random map needs.

        Raises MapError where it fails or returns something else, ImageError for a damaged image in its hands.
        """
        drawn = [self._generator(ref)] if self.random else []
        try:
            mapped = self._call(example, *drawn)
        except (ImageError, MemoryError):
            raise
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise self._error(f"{_place_of(error, self._file)}: {what}", example, shard) from error
        if mapped is not None and not isinstance(mapped, Example):
            what = f"it gave {type(mapped).__name__} instead of an Example, or None to leave one out"
            raise self._error(what, example, shard)
        return mapped

    @cached_property
    def identity(self) -> str:
        """Digits that change with the name, the arguments and the file in which it is written."""
        digest = hashlib.sha256(
            json.dumps([self.name, self.init_args], sort_keys=True, default=repr).encode()
        )
        if self._file is not None and self._file.is_file():
            digest.update(self._file.read_bytes())
        return digest.hexdigest()[:32]

    @property
    def _file(self) -> Path | None:
        try:
            file = inspect.getsourcefile(self._found)
        except TypeError:  # built in, or an instance
            file = getattr(sys.modules.get(type(self._found).__module__), "__file__", None)
        return None if file is None else Path(file)

    def _generator(self, ref: ExampleRef | None) -> np.random.Generator:
        if ref is None:
            raise ValueError(f"data.map {self.name} is random: it needs the place of the example in an epoch")
        return np.random.default_rng([self.seed, ref.epoch, ref.epoch_index, ref.shard, ref.index])

    def _error(self, what: str, example: Example, shard: str) -> MapError:
        return MapError(f"data.map {self.name}: {what} (example {example.id!r}, shard {shard})")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.given, self.seed)


def _parts(given: Given) -> tuple[str, dict[str, Any]]:
    if isinstance(given, str):
        return given, {}
    unknown = set(given) - {"class_path", "init_args"}
    name, arguments = given.get("class_path"), given.get("init_args") or {}
    if unknown or not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise ValueError("give module.name, or a mapping with class_path and init_args")
    return name, dict(arguments)


def _find(name: str) -> Any:
    """What `module.name` names."""
    module, dot, attribute = name.rpartition(".")
    if not dot or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError("give module.name, such as my_maps.only_large for my_maps.py")
    try:
        found = import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"there is no module {error.name!r}, which is looked for beside the recipe, in the current "
                "directory and among installed packages"
            ) from error
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{module} cannot be imported: {what}") from error
    if not hasattr(found, attribute):
        raise ValueError(f"{found.__name__} has no {attribute!r}{did_you_mean(attribute, dir(found))}")
    return getattr(found, attribute)


def _made(found: Any, arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """The callable, with its arguments."""
    if not callable(found):
        raise ValueError(f"that is no function or class but {type(found).__name__}")
    try:
        if isinstance(found, type):
            inspect.signature(found).bind(**arguments)
        else:
            inspect.signature(found).bind_partial(**arguments)
    except TypeError as error:
        raise ValueError(f"it does not take its init_args {dict(arguments)!r}: {error}") from error
    if not isinstance(found, type):
        return partial(found, **arguments) if arguments else found
    try:
        made = found(**arguments)
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"it cannot be made with {dict(arguments)!r}: {what}") from error
    if not callable(made):
        raise ValueError("it is a class without __call__(self, example)")
    return made


def _takes_generator(call: Callable[..., Any]) -> bool:
    signature = inspect.signature(call)
    for arguments in (1, 2):
        try:
            signature.bind(*[None] * arguments)
        except TypeError:
            continue
        return arguments == 2
    raise ValueError(
        f"with the parameters {signature} it must take an example, or an example and a random generator; all "
        "else comes from init_args"
    )


def _place_of(error: Exception, file: Path | None) -> str:
    """`FILE, line N`: the last line of the user's file that was running, else the last one of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file is not None and Path(frame.filename) == file]
    frame = (own or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}"
