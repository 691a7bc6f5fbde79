"""The file of code beside an export that transformers opens without v1lit, made of v1lit's own source."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from v1lit.backbones.folder import CONFIG
from v1lit.backbones.processor import Processor
from v1lit.backbones.weight_files import read_json
from v1lit.files import write_atomically
from v1lit.pointer.model_config import PointAndCopyConfig
from v1lit.pointer.remote import model as template
from v1lit.pointer.remote.bundle import bundle
from v1lit.training.comparing import compare_logits, logits, open_export
from v1lit.training.quiet import no_weights_bar

FILE = "modeling_v1lit.py"
CLASSES = {"AutoConfig": "PointAndCopyConfig", "AutoModelForImageTextToText": "PointAndCopyModel"}
"""What transformers' classes open the folder with."""


def refuse_remote_code(config: PointAndCopyConfig) -> None:
    """Raise ValueError, naming it, for a family or a strategy that the file has no code for."""
    template.refuse_unserved(config.family, config.revisit)


def code() -> str:
    """The text of the file."""
    served = (
        "A point-and-copy model of v1lit, opened by transformers' `trust_remote_code=True` without v1lit.\n\n"
        f"Made by v1lit {version('v1lit')} of its own source; there are its tests, and all that trains.\n"
        f"Families: {', '.join(template.FAMILIES)}.\n"
        f"Strategies: {', '.join(template.STRATEGIES)}.\n"
    )
    return bundle(template, served)


def write_remote_code(folder: Path) -> None:
    """Write the file into an exported folder, and its name into `config.json`."""
    config = read_json(folder / CONFIG)
    module = FILE.removesuffix(".py")
    config["auto_map"] = {auto: f"{module}.{name}" for auto, name in CLASSES.items()}
    write_atomically(folder / FILE, code())
    write_atomically(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def compare_remote(folder: Path) -> str:
    """Compare the logits of a folder, opened by its own file, with v1lit's; says so in words.

    Raises ExportMismatchError.
    """
    opened, processor = open_export(folder, "v1lit"), Processor.from_pretrained(folder)
    before, kind = logits(opened, processor), opened.dtype
    del opened
    after = logits(open_remote(folder), processor)
    return f"opened by {FILE}, {compare_logits(before, after, kind, than='by v1lit')}"


def open_remote(folder: Path) -> Any:
    """The model of a folder, opened by the file in it: of one that was written here, and nobody else's."""
    name = f"v1lit_remote_{abs(hash(folder.absolute()))}"
    spec = spec_from_file_location(name, folder / FILE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)  # where dataclasses look for their names
    try:
        spec.loader.exec_module(module)
        with no_weights_bar():
            return module.PointAndCopyModel.from_pretrained(folder, dtype="auto").eval()
    finally:
        del sys.modules[name]
