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
from v1lit.data.images import ImageError
from v1lit.errors import OptionError, did_you_mean

MapSpec = str | Mapping[str, Any]
"""`module.name`, or a mapping with `class_path` and perhaps `init_args`."""


class MapError(RuntimeError):
    """The user's map failed, or returned what is no example; the message names file, line and example."""


class ExampleMap:
    """A callable `Example -> Example | None`, named by a recipe; None leaves the example out.

    `init_args` are given to a class when it is made, to a function with every call. With a second parameter
    (without a default) it is given a `numpy.random.Generator` that is a function of seed, epoch and index of
    the example: the same for every number of ranks and workers, and in a resumed run. Sent to other
    processes, it is found again there.

    Args:
        spec: its name, or `{"class_path": name, "init_args": {...}}`.
        seed: seed of its generators.

    Raises OptionError where there is no such module or name, it is no callable of one or two arguments, or
    does not take the `init_args`.
    """

    def __init__(self, spec: MapSpec, seed: int = 0) -> None:
        self.spec, self.seed = spec, seed
        try:
            self.name, self.init_args = _name_and_arguments(spec)
            self._target = _import(self.name)
            self._call = _with_arguments(self._target, self.init_args)
            self.random = _takes_generator(self._call)
            """Whether it is given a generator: what it makes of an example then differs by epoch."""
        except ValueError as error:
            raise OptionError("map", spec, str(error), "data") from error

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
            what = f"{_place_of(error, self._file)}: {_told(error)}"
            raise self._error(what, example, shard) from error
        if mapped is not None and not isinstance(mapped, Example):
            what = f"it returned {type(mapped).__name__} instead of an Example, or None to leave one out"
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
            file = inspect.getsourcefile(self._target)
        except TypeError:  # built in, or an instance
            file = getattr(sys.modules.get(type(self._target).__module__), "__file__", None)
        return None if file is None else Path(file)

    def _generator(self, ref: ExampleRef | None) -> np.random.Generator:
        if ref is None:
            raise ValueError(f"data.map {self.name} is random: it needs the place of the example in an epoch")
        return np.random.default_rng([self.seed, ref.epoch, ref.epoch_index, ref.shard, ref.index])

    def _error(self, what: str, example: Example, shard: str) -> MapError:
        return MapError(f"data.map {self.name}: {what} (example {example.id!r}, shard {shard})")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.spec, self.seed)


def _name_and_arguments(spec: MapSpec) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    unknown = set(spec) - {"class_path", "init_args"}
    name, arguments = spec.get("class_path"), spec.get("init_args") or {}
    if unknown or not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise ValueError("give module.name, or a mapping with class_path and init_args")
    return name, dict(arguments)


def _import(name: str) -> Any:
    """What `module.name` names."""
    module_name, dot, attribute = name.rpartition(".")
    if not dot or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError("give module.name, such as my_maps.only_large for my_maps.py")
    try:
        module = import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(
                f"there is no module {error.name!r}, which is looked for beside the recipe, in the current "
                "directory and among installed packages"
            ) from error
        raise ValueError(f"{module_name} cannot be imported: {_told(error)}") from error
    if not hasattr(module, attribute):
        raise ValueError(f"{module.__name__} has no {attribute!r}{did_you_mean(attribute, dir(module))}")
    return getattr(module, attribute)


def _with_arguments(target: Any, arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """A function with its arguments, or the object that a class makes of them."""
    if not callable(target):
        raise ValueError(f"that is no function or class but {type(target).__name__}")
    is_class = isinstance(target, type)
    try:
        signature = inspect.signature(target)
        (signature.bind if is_class else signature.bind_partial)(**arguments)
    except TypeError as error:
        raise ValueError(f"it does not take its init_args {dict(arguments)!r}: {error}") from error
    if not is_class:
        return partial(target, **arguments) if arguments else target
    try:
        instance = target(**arguments)
    except Exception as error:
        raise ValueError(f"it cannot be made with {dict(arguments)!r}: {_told(error)}") from error
    if not callable(instance):
        raise ValueError("it is a class without __call__(self, example)")
    return instance


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


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _place_of(error: Exception, file: Path | None) -> str:
    """`FILE, line N`: the last line of the user's file that was running, else the last one of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file is not None and Path(frame.filename) == file]
    frame = (own or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}"
