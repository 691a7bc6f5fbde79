"""Training on a stream: who reads what, exact resuming, validation, and what stops a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.shard_cases import members_of, tar
from helpers.stream_cases import archives, sample, source
from helpers.tiny_runs import (
    BACKBONE,
    ENCODING,
    Noting,
    SaveAfter,
    fit,
    fit_on_two_ranks,
    listed,
    make_data,
    names,
    tokens,
    written,
)

from v1lit.data.config import MixtureConfig, PackingConfig, StreamConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.data.errors import BadDataError, ShardError
from v1lit.data.example import Example
from v1lit.data.loading.ranks import Ranks
from v1lit.data.remote import DEFAULT_RETRY
from v1lit.data.sampling.grouping import Grouping
from v1lit.data.sampling.remaining import MicroBatchState
from v1lit.data.sources.registry import prepare_source
from v1lit.data.streams.examples import Readers, StreamExamples, StreamFiles
from v1lit.data.streams.reader_state import FileStart, RankState, ReaderState
from v1lit.data.streams.state import StreamLayout, StreamProgress, stream_from_dict, stream_to_dict

pytestmark = pytest.mark.dependencies

COUNTS = [5, 3, 4, 1, 6, 2]
TOTAL = sum(COUNTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream")
    archives(folder, COUNTS)
    return folder


def data_of(path: object, tmp_path: Path, shuffle: int = 4, **options: Any) -> V1DataModule:
    own = {name: options.pop(name) for name in ("members", "val_path") if name in options}
    return make_data(tmp_path, tmp_path, source=source(path, shuffle=shuffle, **own), **options)


def ids_of(batches: list[Any]) -> list[str]:
    return [id for batch in batches for id in batch]


# ------------------------------------------------------------------ one reader


GROUPINGS = {
    "counted": Grouping(2),
    "packed": Grouping(2, PackingConfig(300, look_ahead=5)),
    "similar": Grouping(2, None, 3, 1),
}


def lengths_of(examples: StreamExamples) -> Any:
    def measure(place: Any) -> Any:
        from v1lit.data.lengths.length import Length

        number = int(examples.key(place)[1:])  # type: ignore[index]
        return None if number % 7 == 3 else Length(40 + 37 * number % 190, 0, 0)

    return measure


@pytest.mark.parametrize("kind", list(GROUPINGS))
@pytest.mark.parametrize("shuffle", [0, 1, 4, 100])
def test_a_reader_goes_on_from_its_state_as_if_it_had_not_stopped(
    folder: Path, kind: str, shuffle: int
) -> None:
    files = StreamFiles([str(folder / f"s{n}.tar") for n in range(6)], None, DEFAULT_RETRY, shuffle, 3)
    part = [FileStart(4, 1), FileStart(0), FileStart(2), FileStart(5)]

    def rows(state: ReaderState) -> list[tuple[list[str | None], int, ReaderState]]:
        examples = StreamExamples(Readers(files, [part], [state], epoch=2), 0)
        make = GROUPINGS[kind].make_rows(lengths_of(examples))
        rows_read = []
        for row in make(examples, MicroBatchState(state.read, state.waiting)):
            keys = [examples.key(ref) for ref in row.refs]
            rows_read.append((keys, row.left_out, examples.after(row.after)))
        return rows_read

    whole = rows(ReaderState())
    assert len(whole) > 3
    expected = {f"e{n:03}" for n in (*range(14, 19), *range(5), *range(8, 12), 19, 20)}
    if kind == "packed":
        expected -= {f"e{n:03}" for n in range(TOTAL) if n % 7 == 3}
    assert sorted(key or "" for keys, _, _ in whole for key in keys) == sorted(expected)
    for number, (_, _, state) in enumerate(whole):
        rest = rows(state)
        assert [row[:2] for row in rest] == [row[:2] for row in whole[number + 1 :]]
        assert [row[2][3:] for row in rest] == [row[2][3:] for row in whole[number + 1 :]]


def test_windows_are_permuted_by_seed_and_epoch(folder: Path) -> None:
    def order(seed: int, epoch: int, shuffle: int = 4) -> list[str]:
        files = StreamFiles(
            [str(folder / "s0.tar"), str(folder / "s2.tar")], None, DEFAULT_RETRY, shuffle, seed
        )
        readers = Readers(files, [[FileStart(0), FileStart(1)]], [ReaderState()], epoch)
        examples = StreamExamples(readers, 0)
        return [str(examples.key(place)) for place in examples.find(list(range(9))) if place is not None]

    assert order(0, 0, 0) == sorted(order(0, 0))
    assert sorted(order(0, 0)[:4]) == order(0, 0, 0)[:4]
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*seed_and_epoch)) for seed_and_epoch in ((0, 0), (1, 0), (0, 1), (0, 2))}) == 4


# ------------------------------------------------------------------ epochs


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_every_example_comes_once_per_epoch(tmp_path: Path, workers: int, suffix: str) -> None:
    archives(tmp_path, COUNTS, suffix)
    path = f"{tmp_path}/*" if suffix == ".tar" else f"pipe:cat {tmp_path}/s{{0..5}}.tar.gz"
    done = fit(data_of(path, tmp_path, num_workers=workers), tmp_path, max_epochs=2)
    ids = ids_of(done.batches)
    assert Counter(ids) == dict.fromkeys(names(TOTAL), 2)
    assert ids[:TOTAL] != ids[TOTAL:]


@pytest.mark.slow
def test_two_ranks_share_the_files_and_make_the_same_steps(folder: Path, tmp_path: Path) -> None:
    first, second = fit_on_two_ranks(data_of(folder, tmp_path, num_workers=1), tmp_path)
    assert len(first) == len(second)
    assert sorted(ids_of(first) + ids_of(second)) == names(TOTAL)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["counted", "packed", "accumulated"])
def test_a_run_goes_on_exactly_anywhere(folder: Path, tmp_path: Path, workers: int, how: str) -> None:
    options: dict[str, Any] = {"num_workers": workers}
    if how == "packed":
        options |= {"packing": PackingConfig(3 * tokens(), look_ahead=4)}
    trainer = {"accumulate_grad_batches": 2} if how == "accumulated" else {}
    whole = fit(data_of(folder, tmp_path, **options), tmp_path / "whole", max_epochs=2, **trainer)
    steps = len(whole.batches) // (2 if trainer else 1)
    for at in (1, steps // 2 - 1, steps // 2 + 2):
        path = tmp_path / f"{at}.ckpt"
        fit(
            data_of(folder, tmp_path, **options), tmp_path / "a",
            SaveAfter(at, path, stop=True), max_epochs=2, **trainer,
        )  # fmt: skip
        rest = fit(data_of(folder, tmp_path, **options), tmp_path / "b", resume=path, max_epochs=2, **trainer)
        done = at * (2 if trainer else 1)
        assert rest.batches == whole.batches[done:], at
        assert torch.equal(rest.weight, whole.weight)


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (3, 2)])
def test_with_other_workers_nothing_is_left_out(
    folder: Path, tmp_path: Path, before: int, after: int
) -> None:
    path = tmp_path / "some.ckpt"
    data = data_of(folder, tmp_path, num_workers=before)
    first = fit(data, tmp_path / "a", SaveAfter(4, path, stop=True))
    rest = fit(data_of(folder, tmp_path, num_workers=after), tmp_path / "b", resume=path)
    seen = Counter(ids_of(first.batches) + ids_of(rest.batches))
    assert set(seen) == set(names(TOTAL))
    assert max(seen.values()) <= 2
    assert sum(seen.values()) <= TOTAL + 4 * max(1, before), "at most a window of every reader comes again"


def test_progress_survives_its_dictionary() -> None:
    reader = ReaderState(1, 2, 3, 9, (4, 7))
    progress = StreamProgress(
        2, 5, StreamLayout(2, 2, "x"), (FileStart(3), FileStart(1, 4)),
        (RankState(1, (reader, ReaderState())), RankState(0, (ReaderState(2), reader))), 8,
    )  # fmt: skip
    assert stream_from_dict(stream_to_dict(progress)) == progress
    assert progress.examples_read == 8 + 7 + 7
    assert stream_from_dict(stream_to_dict(StreamProgress(3))) == StreamProgress(3)


def test_what_is_left_is_divided_anew_in_its_order() -> None:
    """Two readers of five files, of which one is amid its second and the other has ended."""
    first, second = ReaderState(1, 7, 20, 25, (21,)), ReaderState(2, 0, 9, 9)
    before = StreamProgress(
        0,
        3,
        StreamLayout(1, 2, "x"),
        tuple(map(FileStart, [4, 2, 0, 3, 1])),
        (RankState(0, (first, second)),),
    )
    after = before.divided(StreamLayout(1, 3, "x"))
    assert after.files == (FileStart(0, 7), FileStart(1))
    assert [after.part(reader) for reader in range(3)] == [(FileStart(0, 7),), (FileStart(1),), ()]
    assert (after.steps, after.examples_read, after.ranks) == (3, 24 + 9, ())
    again = replace(after, ranks=(RankState(0, (ReaderState(), ReaderState(), ReaderState())),))
    assert again.divided(StreamLayout(2, 1, "x")).files == after.files, "not from the beginning of the file"


def test_another_order_is_refused_amid_an_epoch(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "some.ckpt"
    fit(data_of(folder, tmp_path), tmp_path, SaveAfter(2, path, stop=True))
    for change, told in (
        ({"shuffle": 5}, "options.shuffle: 4 in the checkpoint, 5 now"),
        ({"seed": 8}, "data.seed"),
    ):
        with pytest.raises(ValueError, match=told):
            fit(data_of(folder, tmp_path, **change), tmp_path, resume=path)
    written(tmp_path / "d" / "train", 4)
    with pytest.raises(ValueError, match="of other data"):
        fit(make_data(tmp_path / "d", tmp_path), tmp_path, resume=path)


# ------------------------------------------------------------------ what is told


def test_what_a_stream_cannot_promise_is_told(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        fit(data_of(folder, tmp_path), tmp_path, max_steps=2)
    (line,) = [message for message in caplog.messages if message.startswith("a stream: the length")]
    assert "trainer.max_steps" in line
    assert "v1lit data index" in line


def test_fewer_files_than_readers_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"6 files for 7 readers \(1 ranks x 7 workers\).*num_workers=6 or less"
    ):
        data_of(folder, tmp_path, num_workers=7).train_dataloader()


def test_a_stream_is_no_part_of_a_mixture(folder: Path, tmp_path: Path) -> None:
    mixed = replace(source(folder), mixture=[MixtureConfig(str(folder))])
    with pytest.raises(ValueError, match="cannot be drawn from streams"):
        prepare_source(mixed)
    refused = "shufle is 3; the webdataset source has no such option; .* allowed: members, shuffle, val_path"
    with pytest.raises(ValueError, match=refused):
        prepare_source(source(folder, shufle=3))
    with pytest.raises(ValueError, match="a stream: its shards have no index"):
        _ = data_of(folder, tmp_path).train_sources


def test_a_failing_command_stops_the_run(tmp_path: Path) -> None:
    archives(tmp_path, [3, 3])
    command = f"pipe:cat {tmp_path}/s{{0..1}}.tar; exit 4"
    for workers in (0, 1):
        with pytest.raises(ShardError, match="the command ended with exit code 4"):
            fit(data_of(command, tmp_path, num_workers=workers), tmp_path)


def test_bad_samples_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    good = [member for n in range(4) for member in members_of(f"e{n:03}")]
    tar(tmp_path / "a.tar", [*good, ("bad.json", b"{}")])
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:4000])
    data = data_of(f"{tmp_path}/?.tar", tmp_path, shuffle=0)
    done = fit(data, tmp_path / "run")
    kinds = [(skip["kind"], Path(skip["shard"]).name, skip["key"]) for skip in listed(tmp_path / "run")]
    assert ("invalid", "a.tar", "bad") in kinds
    assert kinds[-1] == ("shard", "b.tar", None)
    assert ids_of(done.batches)[:4] == names(4)
    stop = data_of(tmp_path / "a.tar", tmp_path, stream={"on_bad": "stop"})
    with pytest.raises(BadDataError, match="example 'bad'"):
        fit(stop, tmp_path)


def test_a_stream_without_a_good_example_is_an_error(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [("a.json", b"{}"), ("b.json", b"{}")])
    with pytest.raises(BadDataError, match="no example of the epoch could be used"):
        fit(data_of(tmp_path / "a.tar", tmp_path), tmp_path)
    tar(tmp_path / "b.tar", [])
    with pytest.raises(ValueError, match="hold no examples"):
        fit(data_of(tmp_path / "b.tar", tmp_path), tmp_path)


# ------------------------------------------------------------------ members and maps


def odd(example: Example) -> Example | None:
    return example if int(example.id[1:]) % 2 else None


def test_named_members_train(tmp_path: Path) -> None:
    tar(
        tmp_path / "a.tar",
        [
            member
            for n in range(6)
            for member in sample(f"e{n:03}", {"box": [0.1, 0.1, 0.5, 0.5]}, txt="the cup")
        ],
    )
    members = {"reply": "txt", "query": "txt", "boxes": "json:box", "box_units": "0..1"}
    data = data_of(tmp_path / "a.tar", tmp_path, members=members)
    assert sorted(ids_of(fit(data, tmp_path).batches)) == names(6)
    (example, *_) = data.examples("train")
    assert example.regions["<|region_1|>"].box == pytest.approx((4, 3.2, 20, 16))


def test_the_map_goes_between(folder: Path, tmp_path: Path) -> None:
    data = data_of(folder, tmp_path, map=f"{__name__}.odd", packing=PackingConfig(3 * tokens()))
    assert sorted(ids_of(fit(data, tmp_path).batches)) == names(TOTAL)[1::2]
    assert data._skips.left_out == (TOTAL + 1) // 2


# ------------------------------------------------------------------ validation


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("limit", "count"), [(None, TOTAL), (7, 7), (8, 8)])
def test_validation_is_a_stream_with_a_limit(
    folder: Path, tmp_path: Path, workers: int, limit: int | None, count: int
) -> None:
    data = data_of(folder / "s0.tar", tmp_path, val_path=str(folder), max_val_examples=limit)
    data.num_workers = workers
    assert data.has_val
    assert ids_of(fit(data, tmp_path).val_batches) == names(count)
    assert [example.id for example in data.examples("val")] == names(count)


def test_ranks_have_equally_many_validation_batches(folder: Path, tmp_path: Path) -> None:
    for limit in (3, 4, 5, None):
        batches = []
        for rank in range(2):
            data = data_of(folder, tmp_path, val_path=str(folder), max_val_examples=limit)
            loader = data.val_dataloader()
            loader.context.__dict__["ranks"] = Ranks(2, rank)  # type: ignore[union-attr]
            batches.append([micro_batch.batch.ids for micro_batch in loader._micro_batches()])  # type: ignore[union-attr]
        assert len(batches[0]) == len(batches[1])
        assert sorted(ids_of(batches[0]) + ids_of(batches[1])) == names(limit or TOTAL)


def test_validation_may_be_shards(folder: Path, tmp_path: Path) -> None:
    written(tmp_path / "val", 5, first=100)
    mixed = replace(source(folder), val=str(tmp_path / "val"))
    data = make_data(tmp_path, tmp_path, source=mixed)
    assert ids_of(fit(data, tmp_path).val_batches) == names(5, 100)
    assert not make_data(tmp_path, tmp_path, source=source(folder)).has_val


def test_the_module_knows_nothing_of_it(folder: Path, tmp_path: Path) -> None:
    """Lightning sees a loader without a length, as of shards without an index."""
    data = V1DataModule(BACKBONE, source(folder), ENCODING, stream=StreamConfig(cache=str(tmp_path)))
    module = fit(data, tmp_path, max_epochs=1)
    assert isinstance(module, Noting)
    with pytest.raises(TypeError, match="not known before it ends"):
        len(data.train_dataloader())
