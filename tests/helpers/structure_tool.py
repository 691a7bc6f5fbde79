"""`tools/structure.py`, which is no module of v1lit, as `tool`."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def _load() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "tools/structure.py"
    spec = spec_from_file_location("structure_tool", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["structure_tool"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = _load()
