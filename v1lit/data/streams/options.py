"""Options of the source `webdataset`, and which files they name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from v1lit.data.config import SourceConfig
from v1lit.data.remote import Retry, expand, is_remote, unbrace
from v1lit.data.streams.members import Members
from v1lit.errors import OptionError

PIPE = "pipe:"
OPTION = "data.source.options"
ARCHIVES = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class StreamOptions:
    """What a recipe says of a stream."""

    path: str
    """The training shards: a folder, or files, URLs or `pipe:` commands with braces."""
    members: Members | None = None
    """Which member is what; None for examples as v1lit writes them."""
    shuffle: int = 1000
    """Examples that every reader mixes at a time; 0 for the order in which they come, shards included."""
    val_path: str | None = None
    """Shards to validate on, read as a stream, of which `data.max_val_examples` are used."""

    @classmethod
    def read(cls, config: SourceConfig) -> StreamOptions:
        """The options in the source of a recipe; looks at no file. Raises ValueError naming the key.

        Which names they have is for `check_source`.
        """
        if not config.path:
            why = (
                "it needs data.source.path: files, URLs or pipe: commands, such as "
                "'pipe:cat shard-{000..099}.tar.gz'"
            )
            raise OptionError("name", config.name, why, config.GROUP)
        if config.mixture:
            why = (
                "it cannot be drawn from streams, whose examples are not counted: set it to [], or make an "
                "index of the shards with `v1lit data index` and use data.source.name=shards"
            )
            raise OptionError("mixture", [source.shards for source in config.mixture], why, config.GROUP)
        options = config.options
        shuffle = options.get("shuffle", cls.shuffle)
        if not isinstance(shuffle, int) or isinstance(shuffle, bool) or shuffle < 0:
            raise OptionError("shuffle", shuffle, "give a number of examples, or 0 for none", OPTION)
        val = options.get("val_path")
        if val is not None and (not isinstance(val, str) or config.val is not None):
            why = "give a stream, or shards in data.source.val, not both"
            raise OptionError("val_path", val, why, OPTION)
        members = None if options.get("members") is None else Members.read(options["members"])
        return cls(config.path, members, shuffle, val)


def files_of(path: str, retry: Retry) -> list[str]:
    """The single files and commands that a path stands for, in order.

    Raises ValueError where nothing matches, and for braces that do not match.
    """
    if path.startswith(PIPE):
        files = unbrace(path)
    elif not is_remote(path) and Path(path).is_dir():
        files = sorted(str(file) for file in Path(path).iterdir() if file.name.endswith(ARCHIVES))
        if not files:
            raise ValueError(f"{path} holds no .tar, .tar.gz or .tgz files")
    else:
        files = expand(path, retry)
    name, times = Counter(files).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{path} names {name} {times} times; give each file once")
    return files
