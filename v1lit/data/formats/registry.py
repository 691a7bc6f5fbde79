"""The formats of rows that can be imported, by name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from v1lit.errors import explain_unknown

if TYPE_CHECKING:
    from v1lit.data.importing.format import Format

FORMATS = (
    "v1g",
    "llava",
    "messages",
    "sharegpt",
    "coco",
    "voc",
    "refcoco",
    "visual_cot",
    "pixmo_points",
)
"""Names; each is that of a file in `v1lit/data/formats/` with a `FORMAT`."""
MAPPINGS = (".yaml", ".yml")


def get_format(name: str) -> Format:
    """The format of that name, or the one that a YAML file describes; its module is imported only now.

    Raises ValueError where there is none, with those that exist.
    """
    if Path(name).suffix in MAPPINGS:
        from v1lit.data.formats.mapping import read_mapping

        return read_mapping(Path(name))
    if name not in FORMATS:
        raise ValueError(explain_unknown("format", name, FORMATS) + "; or give a mapping, a .yaml file")
    return import_module(f"v1lit.data.formats.{name}").FORMAT
