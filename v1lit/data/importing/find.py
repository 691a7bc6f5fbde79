"""Where rows come from: a file, a folder of files or a dataset on the Hugging Face hub, by split."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v1lit.data.importing.rows import ARROW, PARQUET
from v1lit.errors import one_line

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Usual names of splits -> ours. Other names stay as they are."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NUMBERED = re.compile(r"(\w+)-\d+-of-\d+")
_NO_SPLIT = ("data", "part", "shard", "chunk")
_KNOWN = re.compile(rf"({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(?![A-Za-z])", re.IGNORECASE)


@dataclass(frozen=True)
class FoundFiles:
    """Files to import."""

    splits: dict[str | None, list[Path]]
    """Name of the split -> its files, in order; the name is None where there are no splits."""
    root: Path
    """The folder that names of files are relative to."""
    ignored: tuple[str, ...] = ()
    """Files of the folder that belong to no split."""

    def name(self, path: Path) -> str:
        """Name of a file for people: relative to the source."""
        return path.relative_to(self.root).as_posix()


def find_source(
    source: str | Path, split: str | None = None, suffixes: Sequence[str] = (PARQUET,)
) -> FoundFiles:
    """Find the files of a source, or of one of its splits.

    Splits of a folder are those that the front matter of its README.md lists (`configs: data_files`), else
    they follow from file names such as train-00000-of-00003.parquet, else from names of folders such as
    val/0000.parquet. Files that belong to none while others do are left out (and listed in `ignored`): give
    them as SOURCE to import them.

    Files end in one of `suffixes`; where a folder has several kinds, the first kind counts. Raises ValueError
    where nothing is there or no such split, and for a dataset of the hub that is not available.
    """
    path = Path(source)
    if path.is_file():
        if split is not None:
            raise ValueError(f"{source} is one file: the option split={split!r} is for folders")
        return FoundFiles({None: [path]}, path.parent)
    folder = path if path.is_dir() else _download(str(source), suffixes)
    found = next(filter(lambda found: found.splits, (_split_folder(folder, end) for end in suffixes)), None)
    if found is None:
        raise ValueError(f"{source} holds no files of rows ({', '.join(suffixes)})")
    if split is None:
        return found
    name = canonical_split(split)
    if name not in found.splits:
        existing = ", ".join(str(key) for key in found.splits if key is not None) or "no splits"
        raise ValueError(f"{source} has no split {split!r}; it has: {existing}")
    return FoundFiles({name: found.splits[name]}, found.root, found.ignored)


def canonical_split(name: str) -> str:
    """Our name of a split: "validation" and "dev" are "val". ValueError if it cannot be a folder's name."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"{name!r} is no usable name of a split (letters, digits, underscores)")
    return SPLIT_NAMES.get(name.lower(), name)


def _split_folder(folder: Path, suffix: str) -> FoundFiles:
    everything = sorted(path for path in folder.rglob(f"*{suffix}") if not _hidden(path.relative_to(folder)))
    splits = _splits_of_readme(folder, suffix)
    if splits is None:
        splits = {}
        for path in everything:
            name = _split_of_name(path, folder)
            if name is not None:
                splits.setdefault(name, []).append(path)
    if not splits:
        # Samples of broken rows, as test data often has, are imported only when they are asked for.
        whole = [path for path in everything if not path.name.startswith("broken")]
        splits = {None: whole} if whole else {}
    taken = {path for paths in splits.values() for path in paths}
    ignored = tuple(path.relative_to(folder).as_posix() for path in everything if path not in taken)
    usual = list(dict.fromkeys(SPLIT_NAMES.values()))
    order = sorted(splits, key=lambda name: (usual.index(name) if name in usual else len(usual), name or ""))
    return FoundFiles({name: splits[name] for name in order}, folder, ignored)


def _hidden(path: Path) -> bool:
    """Whether it is in a hidden folder, or a result that `datasets` keeps beside a data set that it saved."""
    kept = path.suffix == ARROW and path.name.startswith("cache-")
    return kept or any(part.startswith(".") for part in path.parts)


def _split_of_name(path: Path, folder: Path) -> str | None:
    stem = path.stem
    if (match := _NUMBERED.fullmatch(stem)) and match[1] not in _NO_SPLIT:
        return canonical_split(match[1])
    for name in (stem, *reversed(path.relative_to(folder).parts[:-1])):
        if match := _KNOWN.match(name):
            return canonical_split(match[1])
    return None


def _splits_of_readme(folder: Path, suffix: str) -> dict[str | None, list[Path]] | None:
    """Splits as the README's front matter lists them; None where it lists none."""
    readme = folder / "README.md"
    if not readme.is_file():
        return None
    text = readme.read_text(encoding="utf-8", errors="replace")
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if match is None:
        return None
    import yaml

    try:
        front = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise ValueError(f"{readme}: the front matter is not YAML ({one_line(error)})") from error
    configs = front.get("configs") if isinstance(front, dict) else None
    if not isinstance(configs, list):
        return None
    splits: dict[str | None, list[Path]] = {}
    for name, pattern in _patterns(_default_config(readme, configs).get("data_files")):
        if pattern.startswith("/") or ".." in Path(pattern).parts:
            raise ValueError(f"{readme}: the pattern {pattern!r} leaves the folder")
        paths = splits.setdefault(canonical_split(name), [])
        paths += [p for p in sorted(folder.glob(pattern)) if p.suffix == suffix and p not in paths]
    return {name: paths for name, paths in splits.items() if paths} or None


def _default_config(readme: Path, configs: list[Any]) -> dict[str, Any]:
    named = [config for config in configs if isinstance(config, dict)]
    default = [config for config in named if config.get("default") or config.get("config_name") == "default"]
    if len(default) != 1 and len(named) != 1:
        names = ", ".join(str(config.get("config_name")) for config in named)
        raise ValueError(f"{readme} lists several datasets ({names}) and no default: give the files of one")
    return default[0] if len(default) == 1 else named[0]


def _patterns(data_files: Any) -> Iterator[tuple[str, str]]:
    """All ways in which the hub lets `data_files` be written -> (split, pattern)."""
    if isinstance(data_files, str):
        yield "train", data_files
    elif isinstance(data_files, dict):
        for split, paths in data_files.items():
            for path in paths if isinstance(paths, list) else [paths]:
                yield str(split), str(path)
    elif isinstance(data_files, list):
        for entry in data_files:
            if isinstance(entry, dict):
                paths = entry.get("path", [])
                yield from _patterns({entry.get("split", "train"): paths})
            else:
                yield "train", str(entry)


def _download(source: str, suffixes: Sequence[str]) -> Path:
    if not _HUB_ID.fullmatch(source):
        raise ValueError(f"{source}: no such file or folder")
    try:
        from huggingface_hub import snapshot_download

        patterns = [*(f"*{suffix}" for suffix in suffixes), "README.md"]
        return Path(snapshot_download(source, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:
        raise ValueError(
            f"{source} is no local file or folder, and the dataset cannot be had from the Hugging Face hub "
            f"({type(error).__name__}: {one_line(error)[:200]}); download its files elsewhere and "
            "give their folder as SOURCE"
        ) from error
