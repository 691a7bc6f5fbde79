"""`StagedFolder`: a folder of shards made in units, which stand in a hidden folder of it until all are there.

    OUT/.NAME/plan.json     what is made: the same plan makes the same bytes
    OUT/.NAME/UNIT/         the shards of a finished unit, and record.json
    OUT/.NAME/final.json    says that all units are there; from here on files only move
    OUT/shard-000000.tar  OUT/shard-000000.index.safetensors ...  OUT/index.json

After a kill the same plan resumes with the units that are finished.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v1lit.data.shards.index import ShardInfo, sidecar_name, write_index
from v1lit.files import aside, remove_leftovers, write_atomically

RECORD_NAME = "record.json"


@dataclass(frozen=True)
class StagedFolder:
    """A folder `out` of shards under way; what is unfinished stands in its hidden folder `name`."""

    out: Path
    name: str
    is_whole: Callable[[Path, ShardInfo], bool]
    """Whether a folder holds a shard as it was written."""

    @property
    def path(self) -> Path:
        """The hidden folder."""
        return self.out / self.name

    @property
    def plan(self) -> Any:
        """What is being made here; None where nothing is."""
        return self._read("plan.json")

    @property
    def final(self) -> Any:
        """What `finish` was called with; None before."""
        return self._read("final.json")

    def _read(self, name: str) -> Any:
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def begin(self, plan: str) -> None:
        """Make the hidden folder ready for a plan, which is JSON; what it holds must be of the same plan."""
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        write_atomically(self.path / "plan.json", plan)

    @contextmanager
    def unit(self, name: str) -> Iterator[Path]:
        """A folder for the shards and the record of a unit, which is finished when the block ends well."""
        with aside(self.path / name) as unfinished:
            yield unfinished
            shutil.rmtree(self.path / name, ignore_errors=True)

    def record(self, unit: str) -> dict[str, Any]:
        """What is recorded of a unit; its "shards" are made `ShardInfo`s."""
        record = json.loads((self.path / unit / RECORD_NAME).read_text(encoding="utf-8"))
        return {**record, "shards": [ShardInfo(**shard) for shard in record["shards"]]}

    def is_done(self, unit: str) -> bool:
        """Whether a unit is there, whole."""
        try:
            return all(self.is_whole(self.path / unit, shard) for shard in self.record(unit)["shards"])
        except (OSError, ValueError, TypeError, LookupError):
            return False

    def finish(self, final: Mapping[str, Any]) -> None:
        """Note that all units are there, and what `publish` needs to know."""
        write_atomically(self.path / "final.json", json.dumps(final))

    def publish(self, shards: Iterable[tuple[str, ShardInfo]], **more: Any) -> dict[str, Any]:
        """Move shards, given as (path in the hidden folder, entry of the index), and write the index last.

        Called again after a kill, it moves what is left. `more` goes into the index, whose content is
        returned. Raises ValueError where a shard is neither here nor in its place.
        """
        infos = []
        for path, shard in shards:
            source = self.path / path
            sidecar = source.with_name(sidecar_name(source.name))
            if sidecar.is_file():  # Before the shard: one that has its place has its sidecar.
                os.replace(sidecar, self.out / sidecar_name(shard.file))
            if source.is_file():
                os.replace(source, self.out / shard.file)
            elif not self.is_whole(self.out, shard):
                place = self.out / shard.file
                raise ValueError(f"{place} is missing or damaged: delete {self.out} and start again")
            infos.append(shard)
        return write_index(self.out, infos, **more)

    def discard(self) -> None:
        """Remove the hidden folder."""
        (self.path / "final.json").unlink(missing_ok=True)  # First: the rest is of no use to another call.
        shutil.rmtree(self.path, ignore_errors=True)
