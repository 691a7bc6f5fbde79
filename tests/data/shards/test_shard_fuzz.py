"""Whatever happens to a shard or to its index: what is read is right, or a ShardError says what is wrong."""

from __future__ import annotations

import contextlib
import io
import itertools
import random
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers.shard_cases import make, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from v1lit.data.errors import ShardError
from v1lit.data.example import Example
from v1lit.data.shards import Shard, ShardIndex, index_shards, list_shards, read_shard_index
from v1lit.data.shards.file import RandomAccess

IDS = ["a", "b", "x" * 120, "ü"]
fuzz = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Case:
    """A good shard: its bytes, index, and the bytes of its sidecar."""

    data: bytes
    index: ShardIndex
    sidecar: bytes
    examples: tuple[Example, ...]

    def raw(self, number: int) -> bytes:
        return self.data[self.index.offsets[number] : self.index.offsets[number + 1]]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = write(tmp_path_factory.mktemp("whole"), IDS)
    sidecar = (folder / "shard-000000.index.safetensors").read_bytes()
    data = (folder / "shard-000000.tar").read_bytes()
    return Case(data, read_shard_index(sidecar), sidecar, tuple(make(id) for id in IDS))


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No endless loops: the accesses to one opened file are counted. No large pieces either."""
    original = RandomAccess.read
    counts: dict[int, int] = {}

    def counted(self: RandomAccess, offset: int, size: int) -> bytes:
        counts[id(self)] = counts.get(id(self), 0) + 1
        if offset == 0 and size == 512:
            counts[id(self)] = 0
        assert counts[id(self)] < 2000
        data = original(self, offset, size)
        assert len(data) <= max(self.size, 0)
        return data

    monkeypatch.setattr(RandomAccess, "read", counted)


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def text_of(example: Example) -> tuple[object, ...]:
    """What nobody can change by changing sizes in headers, as the end of an image can be."""
    return example.id, example.messages, example.regions, [image.size for image in example.images]


def read_by_index(
    path: Path, index: ShardIndex, case: Case, of: Callable[[Example], object] = lambda x: x
) -> int:
    """Check all that can be read, at least `of` it; returns how much that was."""
    originals = [of(example) for example in case.examples]
    good = 0
    with Shard(path, index=index) as shard:
        for number in range(len(shard)):
            try:
                example = shard.example(number)
            except ShardError as error:
                assert error.shard == str(path)  # noqa: PT017
                continue
            good += 1
            assert of(example) in originals
            assert example.key == shard.key(number)
    return good


# --- bytes of the tar file ---


def places(case: Case) -> list[tuple[str, int]]:
    """Every kind of place in a shard."""
    found = []
    fields = {
        "name": 0,
        "mode": 101,
        "size": 130,
        "time": 140,
        "checksum": 150,
        "type": 156,
        "magic": 258,
        "prefix": 345,
    }
    for number in range(len(IDS)):
        start = int(case.index.offsets[number])
        found += [(f"{name} of {number}", start + offset) for name, offset in fields.items()]
        found += [
            (f"content of {number}", start + 520),
            (f"end of {number}", int(case.index.offsets[number + 1]) - 1),
        ]
    with tarfile.open(fileobj=io.BytesIO(case.data)) as file:
        for info in file:
            found += [
                (f"start of {info.name}", info.offset_data),
                (f"end of {info.name}", info.offset_data + info.size - 1),
            ]
    return [*found, ("end of the archive", int(case.index.offsets[-1])), ("last byte", len(case.data) - 1)]


def test_a_changed_byte_costs_its_own_example_only(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "x.tar"
    for name, place in places(case):
        data = bytearray(case.data)
        data[place] ^= 0x41
        path.write_bytes(data)
        hit = int(np.searchsorted(case.index.offsets, place, side="right")) - 1
        with Shard(path, index=case.index) as shard:
            for number, original in enumerate(case.examples):
                if number == hit:
                    with pytest.raises(ShardError, match=r"x\.tar.*checksum"):
                        shard.example(number)
                else:
                    assert shard.example(number) == original, name


def test_a_cut_costs_the_examples_behind_it_only(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "x.tar"
    ends = {
        0,
        1,
        511,
        512,
        len(case.data) - 1,
        *(place for _, place in places(case)),
        *case.index.offsets.tolist(),
    }
    for end in sorted(ends):
        path.write_bytes(case.data[:end])
        with Shard(path, index=case.index) as shard:
            for number, original in enumerate(case.examples):
                if case.index.offsets[number + 1] <= end:
                    assert shard.example(number) == original
                else:
                    with pytest.raises(ShardError, match=r"x\.tar.*number"):
                        shard.example(number)


@fuzz
@given(data=st.data())
def test_any_damage_gives_examples_or_a_shard_error(tmp_path: Path, case: Case, data: st.DataObject) -> None:
    content = bytearray(case.data)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with little_memory():
        with contextlib.suppress(ShardError), Shard(path) as shard:  # Any other error fails the test.
            for number, key in enumerate(shard.keys):
                assert shard.example(number).key == key
        read_by_index(path, case.index, case)


def with_checksums(content: bytearray, starts: list[int]) -> bytearray:
    """The headers at `starts` with checksums that fit again."""
    for start in starts:
        content[start + 148 : start + 156] = b" " * 8
        content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    return content


def header_starts(data: bytes) -> list[int]:
    """All headers, the extended ones too."""
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        return sorted({start for info in file for start in (info.offset, info.offset_data - 512)})


numbers = st.one_of(
    st.integers(0, 2**33).map(lambda n: b"%011o\0" % (n % 8**11)),
    st.integers(0, 2**90).map(lambda n: b"\x80" + n.to_bytes(12, "big")[1:]),
    st.sampled_from([b"\xff" * 12, b"-0000000512\0", b"            ", b"\0" * 12, b"00000001_00\0"]),
)


@fuzz
@given(data=st.data())
def test_hostile_headers_give_examples_or_a_shard_error(
    tmp_path: Path, case: Case, data: st.DataObject
) -> None:
    """Damage that the checksums of headers do not show; the index is made of the hostile file."""
    content, starts = bytearray(case.data), header_starts(case.data)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.sampled_from(starts))
        if data.draw(st.booleans()):
            content[start + 124 : start + 136] = data.draw(numbers)
        if data.draw(st.booleans()):
            content[start + 156] = data.draw(st.sampled_from(b"0\x00123456789xXgLKSDMNVA\xff"))
        if data.draw(st.booleans()):
            name = data.draw(
                st.sampled_from([b"a.json", b"b.jpg", b"../a.json", b"b.json\0", b"q.0.jpg", b"\xff.jpg"])
            )
            content[start : start + 100] = name.ljust(100, b"\0")
    content = with_checksums(content, starts)
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    crc32 = [zlib.crc32(content[case.index.offsets[n] : case.index.offsets[n + 1]]) for n in range(len(IDS))]
    index = ShardIndex(case.index.offsets, np.array(crc32, dtype=np.uint32))
    with little_memory():
        with contextlib.suppress(ShardError), Shard(path) as shard:
            for number, key in enumerate(shard.keys):
                with contextlib.suppress(ShardError):
                    example = shard.example(number)
                    assert example.key == key
                    assert text_of(example) in [text_of(original) for original in case.examples]
        read_by_index(path, index, case, text_of)


@fuzz
@given(noise=st.binary(max_size=3000))
def test_noise_is_no_shard(tmp_path: Path, case: Case, noise: bytes) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(noise)
    with pytest.raises(ShardError):
        Shard(path)
    assert read_by_index(path, case.index, case) == 0


def test_damaged_folders_are_indexed_as_far_as_they_go(tmp_path: Path, case: Case) -> None:
    """With the index that is made of a damaged file, its intact examples are read and nothing else."""
    chance = random.Random(0)
    for round in range(60):
        content = bytearray(case.data)
        for _ in range(chance.randint(1, 3)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        content = content[: chance.choice([len(content), chance.randrange(len(content))])]
        folder = tmp_path / str(round)
        folder.mkdir()
        (folder / "x.tar").write_bytes(content)
        try:
            report = index_shards(str(folder), workers=1)
        except ValueError as error:
            assert "there are no examples" in str(error)  # noqa: PT017
            continue
        assert report["examples"] == list_shards(folder)[0].examples
        index = read_shard_index((folder / "x.index.safetensors").read_bytes())
        bad = 0
        with Shard(folder / "x.tar", index=index) as shard:
            for number in range(len(shard)):
                try:
                    shard.example(number)
                except ShardError:
                    bad += 1
        assert sum(report["problems"].values()) - bad in (0, 1)  # One more where the file itself is damaged.


# --- bytes and offsets of the index ---


def check_index(path: Path, case: Case, sidecar: bytes) -> None:
    try:
        index = read_shard_index(sidecar)
    except ShardError:
        return
    with Shard(path, index=index) as shard:
        for number in range(min(len(shard), 50)):
            with contextlib.suppress(ShardError):
                example = shard.example(number)
                # Checksums cannot fit to other bytes by chance: right is what the true index calls so.
                assert shard.raw(number) == case.raw(number)
                assert example == case.examples[number]


@fuzz
@given(data=st.data())
def test_any_damage_of_an_index_gives_the_examples_or_a_shard_error(
    tmp_path: Path, case: Case, data: st.DataObject
) -> None:
    content = bytearray(case.sidecar)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.tar"
    path.write_bytes(case.data)
    with little_memory():
        check_index(path, case, bytes(content[: data.draw(st.integers(0, len(content)))]))
        check_index(path, case, bytes(content))


def test_every_single_byte_of_an_index_may_be_wrong(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(case.data)
    for place in range(len(case.sidecar)):
        for change in (0x01, 0x80, 0xFF):
            content = bytearray(case.sidecar)
            content[place] ^= change
            check_index(path, case, bytes(content))
        check_index(path, case, case.sidecar[:place])


blocks = st.lists(st.integers(1, 40), max_size=12)
LIES: dict[str, Callable[[list[int]], list[int]]] = {
    "inside": lambda steps: [512 * step for step in steps],
    "behind": lambda steps: [2**20 * step for step in steps],
    "far": lambda steps: [2**57 * step for step in steps],
}


@fuzz
@given(steps=blocks, lie=st.sampled_from(list(LIES)))
def test_made_up_offsets_give_whole_examples_or_a_shard_error(
    tmp_path: Path, case: Case, steps: list[int], lie: str
) -> None:
    """With checksums that fit: somebody who makes up an index can make up these as well."""
    offsets = np.cumsum([0, *LIES[lie](steps)], dtype=object)
    offsets = offsets[offsets < 2**63]
    crc32 = [zlib.crc32(case.data[start:end]) for start, end in itertools.pairwise(offsets)]
    index = ShardIndex(offsets.astype(np.int64), np.array(crc32, dtype=np.uint32))
    path = tmp_path / "x.tar"
    path.write_bytes(case.data)
    with little_memory():
        read_by_index(path, index, case)
