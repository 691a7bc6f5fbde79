"""Small checkpoints in the transformers layout, as people have them, and changes to their files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.load import load_backbone
from v1lit.backbones.processor import load_processor

_KEPT = TemporaryDirectory(prefix="stock_folders_")


@lru_cache
def _made(family: str) -> Path:
    folder = Path(_KEPT.name) / family
    torch.manual_seed(0)
    load_backbone(BackboneConfig(family)).save_pretrained(folder)
    processor = load_processor(BackboneConfig(family))
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.processor.save_pretrained(folder)
    return folder


def stock_folder(folder: Path, family: str = "qwen2_5_vl") -> Path:
    """A whole checkpoint of a tiny model of a family; nothing in it is v1lit's."""
    shutil.copytree(_made(family), folder, dirs_exist_ok=True)
    return folder


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
