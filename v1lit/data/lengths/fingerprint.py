"""What decides lengths: a table is used only where it is the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from v1lit.backbones.processor import Processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.mapping import ExampleMap
from v1lit.revisit.registry import make_strategy
from v1lit.revisit.strategy import Strategy

VERSION = 2
"""Version of what decides lengths here, in `encode/` and in the backbones' patch maps.

Raise it when a length may come out differently: every table is measured again."""


def fingerprint(processor: Processor, encoding: EncodingConfig, map: ExampleMap | None = None) -> str:
    """Changes whenever the length of some example could: 32 hexadecimal digits.

    They depend on the content of tokenizer, image options, chat format, encoding and the map's file alone:
    the same in every process and on every machine.
    """
    backbone, revisit = processor.backbone, processor.revisit
    address = f"{type(revisit).__module__}:{type(revisit).__qualname__}"
    content = {
        "version": VERSION,
        "backbone": backbone.name,
        "chat": asdict(backbone.chat),
        "image": processor.image_options,
        "views": processor.views,
        "encoding": asdict(encoding),
        "tokenizer": _tokenizer_content(processor.tokenizer),
        **({} if map is None else {"map": map.identity}),
        **({} if revisit == make_strategy() else {"revisit": [address, _options(revisit)]}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _options(strategy: Strategy) -> dict[str, Any]:
    return asdict(strategy) if is_dataclass(strategy) else {}


def _tokenizer_content(tokenizer: Any) -> dict[str, Any]:
    """All that decides which ids a text has, as plain JSON."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content: dict[str, Any] = json.loads(backend.to_str())
        # State that calls leave behind; texts are encoded with neither.
        return {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    # A tokenizer in Python: its class, its flags and the files of its vocabulary.
    with TemporaryDirectory() as folder:
        tokenizer.save_vocabulary(folder)
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}
    flags = {key: value for key, value in tokenizer.init_kwargs.items() if isinstance(value, bool | int)}
    added = {str(id): repr(token) for id, token in tokenizer.added_tokens_decoder.items()}
    return {"class": type(tokenizer).__name__, "files": files, "flags": flags, "added": added}
