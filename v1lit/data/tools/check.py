"""Checking shards: every byte against the index, every example against its rules, every image decoded."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TextIO

from v1lit.data.errors import KINDS
from v1lit.data.tools.content import fetch, scan_file
from v1lit.data.tools.examine import examine
from v1lit.data.tools.find import Finding, ShardFile, find_shards
from v1lit.data.tools.repeated import KeyPlace, RepeatedKeys
from v1lit.data.tools.survey import Survey, Surveyor
from v1lit.files import aside
from v1lit.paths import expand_path
from v1lit.processes import count_workers, ordered, progress_bar

FINDING_KINDS = (*KINDS, "missing", "unlisted", "index", "duplicate")
"""Kinds of findings: those of `ShardError`, and missing: a shard that the index names. unlisted: one that the
index does not name. index: it is missing, damaged, or made for other content. duplicate: an id that occurs
again."""
LISTED = 20
"""Findings that a report keeps; the file has all."""
NAMED_REPEATS = 10_000
"""Repeated ids that are named; more are counted."""
CHECK_CACHE_BYTES = 16 * 2**30
"""Disk space for remote shards under check."""


@dataclass
class CheckReport:
    """What was checked, and what was found."""

    shards: int = 0
    examples: int = 0
    images: int = 0
    regions: int = 0
    bytes: int = 0
    """Totals of what could be read."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Findings per kind."""
    first: list[Finding] = field(default_factory=list)
    """The first `LISTED` findings."""
    without_index: list[str] = field(default_factory=list)
    """Folders that have none, so that sizes, checksums and missing shards cannot be known."""
    surveys: dict[str, Survey] = field(default_factory=dict)
    """What the examples of every location are, if that was asked for; a shard counts with its first one."""
    decoded: bool = True
    """Whether images were decoded."""
    seconds: float = 0.0
    """How long it took."""

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.kinds

    def note(self, findings: Iterable[Finding], file: TextIO | None) -> None:
        """Count findings, keep the first ones, and write all of them."""
        for finding in findings:
            self.kinds[finding.kind] += 1
            if len(self.first) < LISTED:
                self.first.append(finding)
            _write(finding, file)

    def add_survey(self, location: str, survey: Survey, file: TextIO | None) -> None:
        """Add what the examples of a shard are, and write what is lost of them."""
        self.surveys[location].update(survey)
        for note in survey.notes:
            _write(note, file)


def _write(finding: Finding, file: TextIO | None) -> None:
    if file is not None:
        file.write(json.dumps(asdict(finding), ensure_ascii=True) + "\n")


def check(
    locations: Sequence[str],
    *,
    workers: int | None = None,
    decode: bool = True,
    out: str | os.PathLike[str] | None = None,
    progress: bool = False,
    surveyor: Surveyor | None = None,
) -> CheckReport:
    """Check the shards of some locations, in parallel, and that no id occurs twice in all of them.

    A process holds one example at a time, besides 40 bytes for each of its shard's examples; ids are compared
    by their hashes, on disk where they are many.

    Args:
        locations: folders, tar files or patterns, local or URLs.
        workers: processes; None for one per core.
        decode: whether to decode the images; without it their headers are read only.
        out: file for all findings, one JSON object with shard, key, kind and reason in each line. Written
            when the check is complete.
        progress: show a progress bar on stderr.
        surveyor: counts what the examples are. What its rules refuse is a finding; what is lost of examples
            that are used all the same stands in the file, among the findings, and is none.

    Raises ValueError for a location without shards, or no workers, and MapError as a map of the rules.
    """
    started = time.monotonic()
    workers = count_workers(workers, 2**31)
    shard_list = find_shards(locations)
    report = CheckReport(
        without_index=shard_list.without_index, decoded=decode, shards=len(shard_list.shards)
    )
    if surveyor is not None:
        report.surveys = {expand_path(location): Survey() for location in locations}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="v1lit-check-")))
        file = stack.enter_context(_written_aside(out))
        cache = (str(folder / "cache"), CHECK_CACHE_BYTES)
        report.note(shard_list.findings, file)
        repeated = RepeatedKeys(folder)
        shards = shard_list.shards
        results = ordered(examine, shards, min(workers, len(shards)), decode, cache, surveyor)
        stack.enter_context(closing(results))
        advance = stack.enter_context(progress_bar("checking", len(shards), progress))
        for shard_index, shard_report in enumerate(results):
            for what in ("examples", "images", "regions", "bytes"):
                setattr(report, what, getattr(report, what) + getattr(shard_report, what))
            report.note(shard_report.findings, file)
            if surveyor is not None:
                report.add_survey(shards[shard_index].source, shard_report.survey, file)
            repeated.add(shard_index, shard_report.keys)
            advance(shard_report.examples)
        report.note(_repeats(repeated, shards, cache), file)
    report.seconds = time.monotonic() - started
    return report


@contextmanager
def _written_aside(path: str | os.PathLike[str] | None) -> Iterator[TextIO | None]:
    """A text file that gets its name when everything was written."""
    if path is None:
        yield None
        return
    path = Path(expand_path(path))
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file for the findings")
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        yield file


def _repeats(repeated: RepeatedKeys, files: Sequence[ShardFile], cache: tuple[str, int]) -> Iterator[Finding]:
    """A finding for every id that came before in another shard; in the same shard it was found already."""
    pairs: list[tuple[KeyPlace, KeyPlace]] = []
    unnamed = 0
    for first, second in repeated.pairs():
        if first.shard != second.shard and len(pairs) < NAMED_REPEATS:
            pairs.append((second, first))
        else:
            unnamed += first.shard != second.shard
    for shard_index, group in groupby(sorted(pairs), key=lambda pair: pair[0].shard):
        keys = scan_file(fetch(files[shard_index], cache)).keys
        for second, first in group:
            reason = f"the same id is example number {first.example} of {files[first.shard].location}"
            yield Finding(files[shard_index].location, keys[second.example], "duplicate", reason)
    if unnamed:
        reason = f"{unnamed} more ids occur again; only {NAMED_REPEATS} are named"
        yield Finding("all shards", None, "duplicate", reason)
