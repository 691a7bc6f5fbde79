"""`Auto` classes of transformers open v1lit's folders after `import v1lit`, which loads neither.

transformers has no entry points: a package has to register its classes, and to do so both have to be loaded.
So what is registered is a stand-in, as soon as transformers' registry is there: at once where it has been
imported, else when somebody imports it. It loads v1lit's classes when a folder of v1lit's is opened.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

REGISTRY = "transformers.models.auto.configuration_auto"
MODEL_TYPE = "v1lit"
"""`model_type` in the `config.json` of our folders."""
CLASSES = "v1lit.inference.autos"
"""Registers model and processor when it is imported, and has `config_class`."""


class LazyConfig:
    """Stands for `PointAndCopyConfig` in transformers' registry; makes only objects of that."""

    model_type = MODEL_TYPE

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return _config_class()(*args, **kwargs)

    @staticmethod
    def from_dict(content: dict[str, Any], **kwargs: Any) -> Any:
        """The config of a `config.json`."""
        return _config_class().from_dict(content, **kwargs)

    @staticmethod
    def from_pretrained(folder: Any, **kwargs: Any) -> Any:
        """The config of a folder."""
        return _config_class().from_pretrained(folder, **kwargs)


def register_lazily() -> None:
    """Have `AutoConfig` know v1lit's folders, now or when transformers is imported."""
    if (registry := sys.modules.get(REGISTRY)) is not None and hasattr(registry, "AutoConfig"):
        _register(registry)
    elif not any(isinstance(finder, _RegistryFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegistryFinder())


class _RegistryFinder(MetaPathFinder):
    """Finds the registry as the others do, once, and has it followed by our registration."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register(module)

            loader.exec_module = exec_module
        return spec


def _register(registry: ModuleType) -> None:
    registry.AutoConfig.register(MODEL_TYPE, LazyConfig, exist_ok=True)


def _config_class() -> Any:
    return import_module(CLASSES).PointAndCopyConfig
