"""Where shards come from: each source is a function that leaves them in `folder/train` and `folder/val`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from v1lit.data.config import MixtureConfig, SourceConfig
from v1lit.data.formats.registry import FORMATS
from v1lit.data.remote import DEFAULT_RETRY, Retry, exists, expand, is_pattern, is_remote, join, may_be_folder
from v1lit.data.shards import INDEX_NAME
from v1lit.data.shards.compressed import hint_of_names
from v1lit.data.sources.names import source_names
from v1lit.data.streams.options import StreamOptions
from v1lit.errors import OptionError, name_allowed, named

VAL_SEED = 1_000_003
"""Added to the seed of the training scenes, so that no scene is in both sets."""


def is_stream(config: SourceConfig) -> bool:
    """Whether the training data are read from front to back: see `v1lit.data.streams`."""
    return config.name == "webdataset"


def train_sources(config: SourceConfig, retry: Retry = DEFAULT_RETRY) -> list[MixtureConfig]:
    """Where the training shards are: the mixture, or `train/` of the folder, or the folder itself.

    Raises ValueError for a stream.
    """
    if is_stream(config):
        raise ValueError(
            "data.source.name is 'webdataset', a stream: its shards have no index, which this needs; make "
            "one with `v1lit data index` and use data.source.name=shards"
        )
    if config.mixture:
        return config.mixture
    if _names_shards(config.folder):
        return [MixtureConfig(config.folder)]
    train = join(config.folder, "train")
    below = _holds_shards(train, retry) or not _holds_shards(config.folder, retry)
    return [MixtureConfig(train if below else config.folder)]


def train_names(config: SourceConfig) -> list[str]:
    """Names of the training sources where there are several, in the order of the mixture; else none."""
    return source_names(config.mixture) if len(config.mixture) > 1 else []


def val_sources(config: SourceConfig, limit: int | None = None) -> list[MixtureConfig]:
    """Where the validation shards are, if there are any: those of the sources, or of the whole.

    limit: examples of each at most.
    """
    named = zip(source_names(config.mixture), config.mixture, strict=True)
    own = [(name, source.val) for name, source in named if source.val is not None]
    if own:
        several = len(config.mixture) > 1
        return [MixtureConfig(val, limit=limit, name=name if several else None) for name, val in own]
    return [MixtureConfig(config.val or join(config.folder, "val"), limit=limit)]


def val_names(config: SourceConfig) -> list[str]:
    """Names of the sources with a `val` of their own, in the order of `val_sources`; else none."""
    return [source.name for source in val_sources(config) if source.name is not None]


def has_train(config: SourceConfig, retry: Retry = DEFAULT_RETRY) -> bool:
    """Whether the training shards are there."""
    return is_stream(config) or all(
        _holds_shards(source.shards, retry) for source in train_sources(config, retry)
    )


def has_val(config: SourceConfig, retry: Retry = DEFAULT_RETRY) -> bool:
    """Whether there are validation shards."""
    if config.val is not None or any(source.val is not None for source in config.mixture):
        return True
    if is_stream(config):
        return config.options.get("val_path") is not None
    return not _names_shards(config.folder) and _holds_shards(val_sources(config)[0].shards, retry)


def _names_shards(location: str) -> bool:
    """Whether a location is a file or a pattern, so that no folders lie below it."""
    return is_pattern(location) and not may_be_folder(location)


def _holds_shards(location: str, retry: Retry) -> bool:
    """Whether a location has an index, or shards without one."""
    if is_remote(location):
        if is_pattern(location) or exists(join(location, INDEX_NAME), retry):
            return True
        with suppress(ValueError):  # It cannot be listed, or holds none.
            return bool(expand(join(location, "*.tar"), retry))
        return False
    folder = Path(location)
    if not folder.is_dir():
        return folder.is_file() or is_pattern(location)
    return (folder / INDEX_NAME).is_file() or any(folder.glob("*.tar"))


def synthetic_source(
    folder: Path,
    path: str | None,
    *,
    examples: int = 4096,
    val_examples: int = 256,
    seed: int = 0,
    look: list[str] | None = None,
    image_size: list[int] | None = None,
    kinds: list[str] | None = None,
    questions_per_scene: int | None = None,
    task: list[str] | None = None,
    steps: int | list[int] | None = None,
    objects: int | list[int] | None = None,
    distance: int | list[int] | None = None,
    look_again: bool | None = None,
) -> None:
    """Drawn scenes, made once. Held-out scenes have one question each, whatever the training scenes have."""
    from v1lit.data.synthetic import synthesize

    drawn_as: dict[str, Any] = {"look": look, "image_size": image_size, "kinds": kinds, "task": task}
    drawn_as |= {"steps": steps, "objects": objects, "distance": distance, "look_again": look_again}
    synthesize(
        folder / "train", examples=examples, seed=seed, questions_per_scene=questions_per_scene, **drawn_as
    )
    synthesize(folder / "val", examples=val_examples, seed=seed + VAL_SEED, **drawn_as)


def imported_source(
    form: str,
    folder: Path,
    path: str | None,
    *,
    workers: int | None = None,
    images: str | None = None,
    box_format: dict[str, Any] | None = None,
) -> None:
    """Rows in a foreign format, imported once."""
    from v1lit.data.formats.registry import get_format
    from v1lit.data.importing.box_format import read_box_format
    from v1lit.data.importing.run import import_rows

    if path is None:
        why = "it needs data.source.path: a file, a folder or a hub id"
        raise OptionError("name", form, why, "data.source")
    boxes = None if box_format is None else read_box_format(box_format)
    failed = import_rows(get_format(form), path, folder, workers=workers, images=images, boxes=boxes).failed
    if failed is not None:
        raise ValueError(f"data.source.path {path!r} could not be imported: {failed}")


SOURCES: Mapping[str, Callable[..., None] | None] = {
    "shards": None,
    "synthetic": synthetic_source,
    "webdataset": None,
    **{form: partial(imported_source, form) for form in FORMATS},
}
"""What makes the shards of a source; None where there is nothing to make."""


def check_source(config: SourceConfig) -> None:
    """Raise ValueError for a source that does not exist or options that it does not take."""
    if config.name not in SOURCES:
        raise OptionError("name", config.name, name_allowed(config.name, SOURCES), config.GROUP)
    allowed: list[str] = []
    if make := SOURCES[config.name]:
        allowed = inspect.getfullargspec(make).kwonlyargs
    elif is_stream(config):
        allowed = [option.name for option in fields(StreamOptions) if option.name != "path"]
    for name in config.options:
        if name not in allowed:
            why = (
                f"the {config.name} source has no such option; {name_allowed(name, allowed)}; options that "
                "another file set are cleared with --data.source.options={}"
            )
            raise OptionError(f"options.{name}", config.options[name], why, config.GROUP)
    if is_stream(config):
        StreamOptions.read(config)
    elif (boxes := config.options.get("box_format")) is not None:
        from v1lit.data.importing.box_format import read_box_format

        with named("data.source.options"):
            read_box_format(boxes)
    elif config.name == "synthetic":
        from v1lit.data.synthetic.settings import check_setting, complete

        with named("data.source.options"):
            if (count := config.options.get("val_examples")) is not None:
                check_setting("val_examples", count)
            complete({name: value for name, value in config.options.items() if name != "val_examples"})


def prepare_source(config: SourceConfig, retry: Retry = DEFAULT_RETRY) -> None:
    """Make sure that the shards of `config` exist. Raises ValueError for mistakes in it."""
    check_source(config)
    if config.name == "shards":
        _check_shards(config, retry)
    elif make := SOURCES[config.name]:
        make(Path(config.folder), config.path, **config.options)


def _check_shards(config: SourceConfig, retry: Retry) -> None:
    for val in (source.shards for source in val_sources(config)):
        if not is_remote(val) and not _holds_shards(val, retry) and (hint := hint_of_names(val)):
            raise ValueError(f"{val} holds no shards to validate on{hint}")
    if config.mixture or has_train(config, retry):
        return
    if is_remote(config.folder):
        why = (
            f"neither it nor its train/ has an {INDEX_NAME}: give a pattern such as "
            ".../shard-{000..099}.tar, or make an index in a folder here with `v1lit data index PATTERN "
            "--out FOLDER` and give that folder"
        )
    else:
        why = "neither it nor its train/ holds shards" + (
            hint_of_names(config.folder, join(config.folder, "train"))
            or "; write some with `v1lit data import` or `v1lit data synth`, or choose data.source.name "
            "synthetic or v1g"
        )
    raise OptionError("folder", config.folder, why, config.GROUP)
