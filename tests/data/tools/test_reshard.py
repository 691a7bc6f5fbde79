"""Resharding keeps every example, mixes well, keeps to its limits, and survives being killed anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.faulty_server import FaultyServer
from helpers.shard_cases import index_of, jpeg, make, members_of, tar, write
from hypothesis import given, settings
from hypothesis import strategies as st

from v1lit.data.errors import ShardError
from v1lit.data.shards import Shard, ShardWriter, list_shards, read_index, sidecar_name, write_index
from v1lit.data.tools import reshard_shards
from v1lit.data.tools.check import check
from v1lit.data.tools.reshard import ReshardOptions, ReshardReport, reshard
from v1lit.data.tools.reshard_permutation import Permutation

FIRST, SECOND = "shard-000000.tar", "shard-000001.tar"
MIB = 2**20


def run(locations: list[Path] | Path, out: Path, workers: int = 1, **options: Any) -> ReshardReport:
    given = [str(one) for one in (locations if isinstance(locations, list) else [locations])]
    return reshard(given, out, ReshardOptions(**options), workers=workers)


def raw(folder: Path) -> Iterator[bytes]:
    """The bytes of all examples in their order."""
    for info in list_shards(folder):
        with Shard(folder / info.file) as shard:
            yield from (shard.raw(number) for number in range(len(shard)))


def keys(folder: Path) -> list[list[str]]:
    """Names of the examples of every shard."""
    found = []
    for info in list_shards(folder):
        with Shard(folder / info.file) as shard:
            found.append(list(shard.keys))
    return found


def content(folder: Path) -> dict[str, str]:
    """Every file and its hash."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def named(count: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{number:05d}" for number in range(count)]


def plain(folder: Path, ids: list[str], size: int = 0, **options: Any) -> Path:
    """Shards of examples without images; `size`: bytes of text each."""
    text = json.loads(make("x", images=0).to_members()["json"])
    with ShardWriter(folder, **options) as writer:
        for id in ids:
            source = {**text, "id": id, "source": "x" * size}
            writer.write_members(make(id, images=0).key, {"json": json.dumps(source).encode()})
    write_index(folder, writer.shards)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards with a, b and c, d."""
    return write(tmp_path / "shards", ["a", "b", "c", "d"], max_examples=2)


# --- what comes out ---


@settings(max_examples=40)
@given(
    sizes=st.lists(st.lists(st.integers(0, 4000), max_size=6), min_size=1, max_size=4),
    per_shard=st.integers(1, 8),
    seed=st.none() | st.integers(0, 2**70),
    indexed=st.booleans(),
)
def test_every_example_and_its_bytes_are_kept(
    sizes: list[list[int]], per_shard: int, seed: int | None, indexed: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = []
        for number, texts in enumerate(sizes):
            inputs.append(folder / f"in-{number}")
            with ShardWriter(inputs[-1], max_examples=3) as writer:
                for place, size in enumerate(texts):
                    example = make(f"{number}.{place}", images=size % 3)
                    writer.write(example)
            write_index(inputs[-1], writer.shards)
        before = [data for one in inputs for data in raw(one)]
        inputs = [one for one in inputs if list(one.glob("*.tar"))]
        if not inputs:
            return
        if not indexed:
            for one in inputs:
                (one / "index.json").unlink()
        report = run(inputs, folder / "out", shuffle=seed, examples_per_shard=per_shard)
        after = list(raw(folder / "out"))
        assert Counter(after) == Counter(before)
        assert seed is not None or after == before
        counts = [info.examples for info in list_shards(folder / "out")]
        assert set(counts[:-1]) <= {per_shard}
        assert 0 < counts[-1] <= per_shard
        assert (report.shards, report.examples) == (len(counts), len(before))
        assert check([str(folder / "out")], workers=1).passed
        assert not list((folder / "out").glob(".*"))


def test_shards_stay_within_their_size(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    ids = named(60)
    with ShardWriter(tmp_path / "in") as writer:
        for id in ids:
            source = {**json.loads(make(id, images=0).to_members()["json"])}
            source["source"] = "x" * int(random.integers(1, 300_000))
            writer.write_members(id, {"json": json.dumps(source).encode()})
        big = {**source, "id": "big", "source": "x" * (2 * MIB)}
        writer.write_members("big", {"json": json.dumps(big).encode()})
    write_index(tmp_path / "in", writer.shards)
    for seed in (None, 1):
        out = tmp_path / f"out-{seed}"
        run(tmp_path / "in", out, shuffle=seed, max_shard_mb=1)
        shards = list_shards(out)
        for info, names in zip(shards, keys(out), strict=True):
            assert (out / info.file).stat().st_size == info.bytes
            assert info.bytes <= MIB or names == ["big"]
        full = [info for info in shards if info.bytes > 0.6 * MIB]
        assert len(full) > 0.7 * len(shards), "shards are filled, as far as they can be"


def test_small_examples_fill_a_shard_to_its_limit(tmp_path: Path) -> None:
    run(plain(tmp_path / "in", named(1600)), tmp_path / "out", max_shard_mb=1, examples_per_shard=10**6)
    first, second = list_shards(tmp_path / "out")
    assert MIB - 20 * 1024 < first.bytes <= MIB
    assert second.examples < first.examples


def test_the_index_says_how_the_shards_were_made(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "out", shuffle=5)
    index = read_index(tmp_path / "out")
    assert index["reshard"]["shuffle"] == 5
    assert (index["examples"], index["images"], index["regions"]) == (4, 4, 4)
    assert str(tmp_path) not in (tmp_path / "out" / "index.json").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_same_options_give_the_same_bytes_with_any_workers(tmp_path: Path, workers: int) -> None:
    one = write(tmp_path / "one", named(20), max_examples=7)
    moved = tmp_path / "elsewhere" / "two"
    shutil.copytree(one, moved)
    run(one, tmp_path / "first", shuffle=1, examples_per_shard=6)
    run(moved, tmp_path / "second", workers=workers, shuffle=1, examples_per_shard=6)
    assert content(tmp_path / "first") == content(tmp_path / "second")
    run(one, tmp_path / "third", shuffle=2, examples_per_shard=6)
    assert keys(tmp_path / "third") != keys(tmp_path / "first")


def test_shards_from_a_server_are_copied(folder: Path, tmp_path: Path) -> None:
    with FaultyServer() as server:
        for path in folder.iterdir():
            server.files[f"shards/{path.name}"] = path.read_bytes()
        options = ReshardOptions(shuffle=3, examples_per_shard=1)
        run(folder, tmp_path / "local", shuffle=3, examples_per_shard=1)
        reshard([server.url("shards")], tmp_path / "out", options, workers=1)
        whole = Counter(request.path for request in server.requests if request.range is None)
    assert [whole[f"shards/{name}"] for name in (FIRST, SECOND)] == [1, 1], "each is downloaded once"
    assert content(tmp_path / "local") == content(tmp_path / "out")


# --- shuffling ---


@given(seed=st.integers(0, 2**70), size=st.integers(1, 3000))
def test_a_shuffle_is_a_permutation(seed: int, size: int) -> None:
    places = Permutation(seed, size)(np.arange(size))
    assert sorted(places.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 5, 1000, 12345])
def test_a_shuffle_depends_on_the_seed_alone(size: int) -> None:
    one, again, other = (Permutation(seed, size)(np.arange(size)) for seed in (7, 7, 8))
    assert (one == again).all()
    pieces = [Permutation(7, size)(np.arange(start, min(start + 10, size))) for start in range(0, size, 10)]
    assert (np.concatenate(pieces) == one).all()
    assert size < 6 or (one != other).any()


def independence(table: np.ndarray) -> float:
    """How many standard deviations chi squared of a table of counts lies above what chance gives."""
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return float((((table - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize("size", [2_500, 100_000, 2**17, 300_001])
def test_where_an_example_goes_is_independent_of_where_it_was(size: int) -> None:
    positions = np.arange(size)
    scores = []
    for seed in range(6):
        places = Permutation(seed, size)(positions)
        table = np.zeros((50, 50))
        np.add.at(table, (positions * 50 // size, places * 50 // size), 1)
        scores.append(independence(table))
        neighbours = np.count_nonzero(np.abs(np.diff(places)) == 1)
        assert neighbours < 20, "2 are expected"
        assert abs(np.corrcoef(positions, places)[0, 1]) < 5 / np.sqrt(size)
    assert max(np.abs(scores)) < 5


def test_all_orders_of_few_examples_are_equally_likely() -> None:
    orders = Counter(tuple(Permutation(seed, 4)(np.arange(4)).tolist()) for seed in range(4800))
    assert len(orders) == 24
    assert max(abs(count - 200) for count in orders.values()) < 5 * np.sqrt(200)


def test_seeds_give_unrelated_orders() -> None:
    size = 20_000
    first, second = (Permutation(seed, size)(np.arange(size)) for seed in (0, 1))
    table = np.zeros((20, 20))
    np.add.at(table, (first * 20 // size, second * 20 // size), 1)
    assert abs(independence(table)) < 5


def test_examples_are_mixed_across_shards(tmp_path: Path) -> None:
    plain(tmp_path / "in", named(2000), max_examples=100)
    run(tmp_path / "in", tmp_path / "out", shuffle=0, examples_per_shard=100)
    table = np.zeros((20, 20))
    for new, names in enumerate(keys(tmp_path / "out")):
        for name in names:
            table[int(name) // 100, new] += 1
    assert table.sum() == 2000
    assert abs(independence(table)) < 5


# --- memory ---


def peak_of(inputs: Path, out: Path) -> int:
    tracemalloc.start()
    run(inputs, out, shuffle=0, examples_per_shard=10**6, max_shard_mb=10**4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_is_bounded_whatever_the_size_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reshard_shards, "BUFFER_BYTES", 2 * MIB)
    small = plain(tmp_path / "small", named(160), size=100_000, max_examples=40)  # 16 MB
    large = plain(tmp_path / "large", named(480), size=100_000, max_examples=40)  # 48 MB
    peaks = [peak_of(one, tmp_path / f"out-{one.name}") for one in (small, large)]
    assert max(peaks) < 5 * MIB
    assert peaks[1] < peaks[0] + MIB


def test_cutting_looks_at_some_examples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from v1lit.data.tools.reshard_table import ROW, ExampleTable

    rows = np.zeros(50_000, dtype=ROW)
    rows["end"] = 1024 * (1 + np.arange(50_000) % 7)
    table = ExampleTable(rows, np.array([0, 50_000]), [])
    whole = [reshard_shards.cut(table, seed, 1000, MIB) for seed in (None, 3)]
    monkeypatch.setattr(reshard_shards, "_CHUNK", 77)
    assert [reshard_shards.cut(table, seed, 1000, MIB) for seed in (None, 3)] == whole


# --- ids that occur twice ---


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_an_id_in_two_inputs_is_refused_with_both_places(tmp_path: Path, on_bad: str) -> None:
    one = write(tmp_path / "one", ["a", "b", "same"], max_examples=2)
    other = write(tmp_path / "other", ["c", "same"])
    with pytest.raises(ValueError, match="'same' occurs twice") as caught:
        run([one, other], tmp_path / "out", on_bad=on_bad)
    assert f"number 0 of {one / SECOND}" in str(caught.value)
    assert f"number 1 of {other / FIRST}" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]


def test_an_id_twice_in_one_shard_is_refused(tmp_path: Path) -> None:
    tar(tmp_path / "in" / FIRST, [*members_of("a"), *members_of("b"), *members_of("a")])
    with pytest.raises(ValueError, match="'a' occurs twice"):
        run(tmp_path / "in", tmp_path / "out")


# --- bad shards and examples ---


def bad_example(folder: Path) -> None:
    tar(folder / SECOND, [*members_of("c"), ("x.json", b"{"), ("x.jpg", jpeg(0))])


def misnamed_member(folder: Path) -> None:
    tar(folder / SECOND, [*members_of("c"), ("../x.json", b"{}"), ("README", b"")])


def changed_bytes(folder: Path) -> None:
    data = (folder / SECOND).read_bytes()
    place = data.rindex(b"Where?")
    (folder / SECOND).write_bytes(data[:place] + b"Where!" + data[place + 6 :])


def cut_off(folder: Path) -> None:
    os.truncate(folder / SECOND, int(index_of(folder / SECOND).offsets[1]) + 1536)


def missing(folder: Path) -> None:
    (folder / SECOND).unlink()


def missing_sidecar(folder: Path) -> None:
    (folder / sidecar_name(SECOND)).unlink()


def other_sidecar(folder: Path) -> None:
    plain(folder.parent / "other", ["1", "2"])
    shutil.copy(folder.parent / "other" / sidecar_name(FIRST), folder / sidecar_name(SECOND))


def unlisted(folder: Path) -> None:
    tar(folder / "shard-000002.tar", members_of("e"))


def no_index(folder: Path) -> None:
    (folder / "index.json").unlink()


FAULTS = {
    "an invalid example": ([no_index, bad_example], ["a", "b", "c"], {"invalid": 1}),
    "members of no example": ([no_index, misnamed_member], ["a", "b", "c"], {"member": 2}),
    "changed bytes": ([changed_bytes], ["a", "b", "c"], {"checksum": 1}),
    "a cut-off shard": ([no_index, cut_off], ["a", "b", "c"], {"shard": 1, "member": 1}),
    "a cut-off shard with an index": ([cut_off], ["a", "b", "c"], {"shard": 1, "checksum": 1}),
    "a missing shard": ([missing], ["a", "b"], {"missing": 1}),
    "a missing sidecar": ([missing_sidecar], ["a", "b"], {"unreachable": 1}),
    "a sidecar of another shard": ([other_sidecar], ["a", "b"], {"checksum": 1}),
    "a shard that the index does not name": ([unlisted], ["a", "b", "c", "d", "e"], {"unlisted": 1}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_data_is_skipped_and_listed(folder: Path, tmp_path: Path, fault: str) -> None:
    damages, expected, kinds = FAULTS[fault]
    for damage in damages:
        damage(folder)
    out = tmp_path / "out"
    report = run(folder, out, on_bad="skip", examples_per_shard=1)
    assert keys(out) == [[key] for key in expected]
    lines = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert Counter(line["kind"] for line in lines) == report.skipped == kinds
    assert read_index(out)["reshard"]["skipped"] == sum(kinds.values())
    assert check([str(out)], workers=1).passed


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_data_stops_and_leaves_nothing_that_looks_complete(
    folder: Path, tmp_path: Path, fault: str
) -> None:
    for damage in FAULTS[fault][0]:
        damage(folder)
    with pytest.raises(ShardError) as caught:
        run(folder, tmp_path / "out", workers=1)
    assert str(folder) in caught.value.shard
    assert {path.name for path in tmp_path.glob("out/*")} <= {".reshard"}


def test_shards_come_in_the_order_in_which_their_index_lists_them(tmp_path: Path) -> None:
    source = plain(tmp_path / "in", named(6), max_examples=2)
    write_index(source, list_shards(source)[::-1])
    run(source, tmp_path / "out", examples_per_shard=2)
    assert keys(tmp_path / "out") == [["00004", "00005"], ["00002", "00003"], ["00000", "00001"]]


def test_an_example_that_changes_between_the_passes_is_noticed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_index(folder)
    cut = reshard_shards.cut

    def change_and_cut(*args: Any) -> list[int]:
        changed_bytes(folder)
        return cut(*args)

    monkeypatch.setattr("v1lit.data.tools.reshard.cut", change_and_cut)
    with pytest.raises(ShardError, match="checksum") as caught:
        run(folder, tmp_path / "out")
    assert caught.value.key == "d"


# --- the output folder ---


def test_a_folder_that_is_not_empty_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    for out in (tmp_path / "out", folder):
        before = content(out)
        with pytest.raises(ValueError, match=r"is not empty \(it holds "):
            run(folder, out)
        assert content(out) == before
    with pytest.raises(ValueError, match="is a file"):
        run(folder, tmp_path / "out" / "notes.txt")


def test_an_empty_folder_is_taken(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run(folder, tmp_path / "out").examples == 4


def test_two_processes_do_not_write_to_one_folder(folder: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "out" / ".reshard").mkdir(parents=True)
    with (
        FileLock(tmp_path / "out" / ".reshard" / "lock"),
        pytest.raises(ValueError, match="another process is writing"),
    ):
        run(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shuffle": -1}, "shuffle is -1; give 0 or more"),
        ({"examples_per_shard": 0}, "examples_per_shard is 0"),
        ({"max_shard_mb": 0}, "max_shard_mb is 0"),
        ({"on_bad": "ignore"}, "allowed: stop, skip"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_mistakes_are_refused_before_anything_is_made(
    folder: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        run(folder, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="nowhere"):
        run(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- being killed ---


def run_and_die(inputs: Path, out: Path, at: int, **options: Any) -> bool:
    """Reshard in a process that dies right before the `at`-th file gets its name; False: it got done."""
    child = os.fork()
    if child == 0:
        left, replace = at, os.replace

        def replace_or_die(*args: Any, **named: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)  # As with SIGKILL, nothing is tidied up.
            replace(*args, **named)

        os.replace = replace_or_die  # type: ignore[assignment]
        try:
            run(inputs, out, **options)
            os._exit(0)
        except BaseException:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.slow
def test_killed_anywhere_and_started_again_it_gives_the_same_bytes(tmp_path: Path) -> None:
    inputs = write(tmp_path / "in", named(7), max_examples=4)
    no_index(inputs)
    tar(inputs / "shard-000002.tar", [("x.json", b"{}"), *members_of("last")])
    options = {"shuffle": 4, "examples_per_shard": 2, "on_bad": "skip"}
    run(inputs, tmp_path / "whole", **options)
    expected = content(tmp_path / "whole")
    at, deaths = 0, 0
    while run_and_die(inputs, out := tmp_path / f"out-{at}", at, **options):
        assert not (out / "index.json").exists()
        deaths += 1
        if at % 2:  # Killed a second time, while it goes on.
            assert run_and_die(inputs, out, 0, **options) or (out / "index.json").exists()
        run(inputs, out, **options)
        assert content(out) == expected
        at += 1
    assert deaths > 15
    assert content(out) == expected


def test_killed_after_the_index_it_still_ends_well(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, unlink = tmp_path / "out", Path.unlink

    def unlink_or_stop(path: Path, **named: Any) -> None:
        if path.name == "final.json":
            raise KeyboardInterrupt
        unlink(path, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink_or_stop)
        with pytest.raises(KeyboardInterrupt):
            run(folder, out)
    assert check([str(out)], workers=1).passed
    run(folder, out)
    assert not (out / ".reshard").exists()


def test_what_was_done_is_not_done_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_written: list[int] = []
    write_raw = ShardWriter.write_raw

    def counted(self: ShardWriter, data: bytes) -> str:
        bytes_written.append(len(data))
        if len(bytes_written) == 3:
            raise KeyboardInterrupt
        return write_raw(self, data)

    monkeypatch.setattr(ShardWriter, "write_raw", counted)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out", examples_per_shard=1)
    run(folder, tmp_path / "out", examples_per_shard=1)
    assert len(bytes_written) == 3 + 2


@pytest.mark.parametrize("change", ["options", "inputs"])
def test_a_begun_folder_is_begun_anew_for_other_inputs_or_options(
    folder: Path, tmp_path: Path, change: str
) -> None:
    assert run_and_die(folder, tmp_path / "out", at=6, examples_per_shard=1)
    if change == "inputs":
        shutil.rmtree(folder)
        write(folder, ["e", "f", "g", "h"], max_examples=2)
    per_shard = 1 if change == "inputs" else 3
    run(folder, tmp_path / "out", examples_per_shard=per_shard)
    run(folder, tmp_path / "fresh", examples_per_shard=per_shard)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
