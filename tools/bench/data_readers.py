"""The contenders of the data benchmark, each a reader of one epoch, and how they are timed in turn."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

import webdataset
from data_shards import Shards
from measure import MeasureError, last_line
from PIL import Image

from v1lit.data.images import decode_image
from v1lit.data.loading.dataset import ShardDataset

CHUNK = 50
"""Examples that a contender reads before the next one's turn."""
BLOCK = 2**20
"""Bytes that a plain reader of files asks for at once."""
RIVAL_TIMEOUT = 120
"""Seconds for any one answer; the first takes the conversion of the data."""


class Seconds(NamedTuple):
    """Of an epoch, or a part of one."""

    wall: float
    """By the clock."""
    cpu: float
    """By the processor, in all threads: what others do on the machine adds little."""


class Reader(Protocol):
    """Reads the same examples as the others, some at a time."""

    @property
    def cpu(self) -> float:
        """Processor seconds that this reader's process has used."""

    def open(self) -> None:
        """Begin an epoch anew."""

    def take(self, count: int) -> int:
        """Read at most so many more examples; how many there were."""


class Local:
    """A reader in this process: whatever an iterator gives counts as one example."""

    def __init__(self, begin: Callable[[], Iterator[Any]]) -> None:
        self._begin = begin
        self._rest: Iterator[Any] = iter(())

    @property
    def cpu(self) -> float:
        return time.process_time()

    def open(self) -> None:
        self._rest = iter(self._begin())

    def take(self, count: int) -> int:
        return sum(1 for _ in islice(self._rest, count))


class Rival:
    """A reader in a process of another interpreter: data_rival.py, one line for every question and answer."""

    def __init__(self, python: str, name: str, shards: Shards) -> None:
        """Raises MeasureError where the rival is not installed or its data cannot be made."""
        script = str(Path(__file__).with_name("data_rival.py"))
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [python, script, name, str(shards.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        except OSError as error:
            raise MeasureError(f"{Path(python).name} cannot be started ({error.strerror})") from None
        self.versions = ", ".join(f"{name} {one}" for name, one in self._answer().items())
        self.cpu = 0.0

    def open(self) -> None:
        self.cpu = self._ask("open")["cpu"]

    def take(self, count: int) -> int:
        answer = self._ask(f"take {count}")
        self.cpu = answer["cpu"]
        return int(answer["examples"])

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, question: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer says why
            self._process.stdin.write(question + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], RIVAL_TIMEOUT)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise MeasureError(self._last_words() if ready else f"no answer in {RIVAL_TIMEOUT} s")
        return dict(json.loads(line))

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        return last_line(self._errors.read()) or "it ended without a word"


def decode(data: bytes) -> Image.Image:
    """The decoding that all contenders do: Pillow's, to RGB."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def read_raw(shards: Shards) -> Iterator[int]:
    """Every byte of every file in order; gives what lies before an example is passed, as one example each."""
    for file, places in zip(shards.files, shards.places, strict=True):
        with open(file, "rb", buffering=0) as opened:
            passed = 0
            for start, size in places:
                while passed < start + size and (block := opened.read(BLOCK)):
                    passed += len(block)
                yield passed
            while block := opened.read(BLOCK):
                passed += len(block)


def read_limit(shards: Shards) -> Iterator[Image.Image]:
    """The least that has to be done: the bytes of every image, read in order from known places, decoded."""
    for file, places in zip(shards.files, shards.places, strict=True):
        with open(file, "rb") as opened:
            for start, size in places:
                opened.seek(start)
                yield decode(opened.read(size))


def read_webdataset(shards: Shards, decoded: bool) -> Iterator[Any]:
    """WebDataset as it is fastest: in the order of the shards, nothing shuffled, JSON parsed."""

    def finish(sample: dict[str, Any]) -> Any:
        record = json.loads(sample["json"])
        return decode(sample["jpg"]) if decoded else record

    names = [str(file) for file in shards.files]
    return iter(webdataset.WebDataset(names, shardshuffle=False).map(finish))


def read_v1lit(shards: Shards, finish: Callable[[Any], Any] = lambda example: example) -> Iterator[Any]:
    """v1lit as in training: shuffled, every example validated."""
    return map(finish, ShardDataset(shards.folder))


def decoding(shards: Shards) -> dict[str, Local]:
    """From files to RGB."""
    return {
        "limit": Local(lambda: read_limit(shards)),
        "webdataset": Local(lambda: read_webdataset(shards, decoded=True)),
        "v1lit": Local(lambda: read_v1lit(shards, lambda example: decode(example.images[0].data))),
        "v1lit, decode_image": Local(
            lambda: read_v1lit(shards, lambda example: decode_image(example.images[0]))
        ),
    }


def not_decoding(shards: Shards) -> dict[str, Local]:
    """The images stay as they are."""
    return {
        "raw": Local(lambda: read_raw(shards)),
        "webdataset": Local(lambda: read_webdataset(shards, decoded=False)),
        "v1lit": Local(lambda: read_v1lit(shards)),
    }


def in_turn(
    readers: Mapping[str, Reader], examples: int, laps: int, chunk: int = CHUNK
) -> dict[str, Seconds]:
    """Seconds of an epoch, opening included: the median over laps of every chunk, summed.

    The contenders read a chunk each, A B A B ..., so that a machine that slows down slows all of them; every
    other time in the opposite order. Before it is counted each reads one chunk. Raises MeasureError, naming
    the contender, where one has not given every example once.
    """
    for reader in readers.values():
        reader.open()
        reader.take(chunk)
    laps_of: dict[str, list[list[Seconds]]] = {name: [] for name in readers}
    for _ in range(laps):
        for name, times in _lap(readers, examples, chunk).items():
            laps_of[name].append(times)
    return {name: _together(taken) for name, taken in laps_of.items()}


def _lap(readers: Mapping[str, Reader], examples: int, chunk: int) -> dict[str, list[Seconds]]:
    """Seconds of every chunk of one epoch; opening is part of the first."""
    taken: dict[str, list[Seconds]] = {name: [] for name in readers}
    given = dict.fromkeys(readers, 0)
    for number in range(-(-examples // chunk)):
        for name in list(readers) if number % 2 == 0 else reversed(list(readers)):
            reader, start, cpu = readers[name], time.perf_counter(), readers[name].cpu
            if number == 0:
                reader.open()
            given[name] += reader.take(min(chunk, examples - number * chunk))
            taken[name].append(Seconds(time.perf_counter() - start, reader.cpu - cpu))
    for name, count in given.items():
        if count != examples:
            raise MeasureError(f"{name} gave {count:,} of {examples:,} examples")
    return taken


def _together(laps: Sequence[Sequence[Seconds]]) -> Seconds:
    chunks = list(zip(*laps, strict=True))
    return Seconds(
        sum(median(one.wall for one in chunk) for chunk in chunks),
        sum(median(one.cpu for one in chunk) for chunk in chunks),
    )


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """This process, and what it starts, on a single core; where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def find_rival(pythons: Sequence[str], name: str, shards: Shards) -> Rival | str:
    """The rival, running in the first of the interpreters that has it, or the reasons why there is none."""
    reasons = []
    for python in pythons:
        try:
            return Rival(python, name, shards)
        except MeasureError as error:
            reasons.append(str(error))
    return "; ".join(dict.fromkeys(reasons))
