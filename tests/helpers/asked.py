"""Tiny models that can be asked, and saved to be asked from a command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from v1lit.inference.predictor import Predictor
from v1lit.testing.models import noise, prefers_pointing, processor


def predictor(family: str = "qwen2_5_vl") -> Predictor:
    """A tiny model that likes to point, with its processor."""
    return Predictor(prefers_pointing(family), processor(family))


def save_model(folder: Path, family: str = "qwen2_5_vl") -> Path:
    """The same as an exported folder."""
    asked = predictor(family)
    asked.model.save_pretrained(folder)
    asked.processor.save_pretrained(folder)
    return folder


def write_rows(folder: Path, rows: Sequence[dict[str, Any] | str]) -> Path:
    """A file of rows, texts as they are, with two pictures beside it."""
    noise((112, 84)).save(folder / "a.png")
    noise((56, 168), 1).save(folder / "b.png")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of answers."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
