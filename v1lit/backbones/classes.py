"""Classes that a family names: those of transformers by their name, others by `module:name`."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def named_class(name: str) -> Any:
    """The class of a `model_class` or `processor_class`; nothing is imported before it is asked for."""
    module, _, attribute = name.rpartition(":")
    return getattr(import_module(module or "transformers"), attribute)


def class_name(name: str) -> str:
    """The name of the class alone, as files have it."""
    return name.rpartition(":")[2]
