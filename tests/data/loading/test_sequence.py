"""Training over opened shards: with and without an index, mixtures, few shards, few examples, tails."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.forked import needs_fork
from helpers.tiny_runs import (
    SaveAfter,
    fit,
    fit_on_two_ranks,
    listed,
    make_data,
    names,
    without_index,
    written,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from v1lit.backbones.qwen import Qwen25VL
from v1lit.data.config import MixtureConfig, PackingConfig, SourceConfig, StreamConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.data.loading.sequence import open_sequence
from v1lit.data.sampling.epoch import Progress, StepLayout, rank_rows
from v1lit.data.sampling.rows import counted_rows

COUNT = 13
PACKED = PackingConfig(240)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The same shards with an index and without."""
    return written(tmp_path / "with", COUNT), without_index(written(tmp_path / "without", COUNT))


def flat(batches: list[Any]) -> list[str]:
    return [id for batch in batches for id in batch]


# ------------------------------------------------------------------ without an index


@pytest.mark.slow
@pytest.mark.parametrize("packing", [None, PACKED], ids=["counted", "packed"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_without_an_index_is_the_same(
    folders: tuple[Path, Path],
    tmp_path: Path,
    packing: PackingConfig | None,
    workers: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs = []
    for folder in folders:
        data = make_data(folder, tmp_path, packing=packing, num_workers=workers)
        assert ("no index, so the length" in caplog.text) is False
        runs.append(fit(data, tmp_path, max_epochs=2).batches)
    assert runs[0] == runs[1]
    assert Counter(flat(runs[0])) == dict.fromkeys(names(COUNT), 2)
    for word in (str(folders[1]), "remaining time are not known", "every rank reads all", "v1lit data index"):
        assert word in caplog.text


def test_its_length_is_not_known(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert len(make_data(folders[0], tmp_path).train_dataloader()) == -(-COUNT // 2)
    with pytest.raises(TypeError, match="not known without an index before it ends"):
        len(make_data(folders[1], tmp_path).train_dataloader())


@pytest.mark.slow
@pytest.mark.parametrize("packing", [None, PACKED], ids=["counted", "packed"])
@pytest.mark.parametrize("stop", [1, 3, 9])
def test_a_resumed_run_without_an_index_goes_on_exactly(
    folders: tuple[Path, Path], tmp_path: Path, packing: PackingConfig | None, stop: int
) -> None:
    def data() -> V1DataModule:
        return make_data(folders[1], tmp_path, packing=packing, stream={"shuffle_window": 4})

    whole = fit(data(), tmp_path, max_epochs=3).batches
    path = tmp_path / "x.ckpt"
    part = fit(data(), tmp_path, SaveAfter(stop, path, stop=True), max_epochs=3).batches
    rest = fit(data(), tmp_path, resume=path, max_epochs=3).batches
    assert len(part) == stop
    assert part + rest == whole


def test_two_ranks_read_together_what_one_reads(folders: tuple[Path, Path]) -> None:
    """In one process: the rows of both, from a sequence of their own each."""
    for folder in folders:
        sources, rows = [MixtureConfig(str(folder))], []
        for rank in range(2):
            sequence = open_sequence(sources, StreamConfig(shuffle_window=4), 3).sequence
            progress = Progress(layout=StepLayout(2, "2"))
            rows.append(
                list(rank_rows(sequence, progress, lambda s, t: counted_rows(s, t, 2), rank=rank, ranks=2))
            )
        positions = [ref.epoch_index for rank in rows for row in rank for ref in row.refs]
        assert sorted(positions) == list(range(COUNT))
        assert [ref.epoch_index % 2 for row in rows[1] for ref in row.refs] == [1] * (COUNT // 2)
        assert len({(p.shard, p.index) for rank in rows for row in rank for p in row.refs}) == COUNT


@pytest.mark.slow
@needs_fork
@pytest.mark.timeout(120)
@pytest.mark.parametrize("packing", [None, PACKED], ids=["counted", "packed"])
def test_two_processes_without_an_index_share_an_epoch(
    folders: tuple[Path, Path], tmp_path: Path, packing: PackingConfig | None
) -> None:
    ranks = []
    for folder in folders:
        (tmp_path / folder.name).mkdir(exist_ok=True)
        ranks.append(fit_on_two_ranks(make_data(folder, tmp_path, packing=packing), tmp_path / folder.name))
    assert ranks[0] == ranks[1]
    assert sorted(flat(ranks[0][0]) + flat(ranks[0][1])) == names(COUNT)
    assert len(ranks[0][0]) == len(ranks[0][1])


@settings(max_examples=20)
@given(window=st.integers(1, 20), seed=st.integers(0, 99), epoch=st.integers(0, 2))
def test_any_window_and_seed_give_one_order(
    tmp_path_factory: pytest.TempPathFactory, window: int, seed: int, epoch: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "orders"
    if not path.exists():
        written(path / "with", COUNT)
        without_index(written(path / "without", COUNT))
    orders = []
    for name in ("with", "without"):
        opened = open_sequence([MixtureConfig(str(path / name))], StreamConfig(shuffle_window=window), seed)
        progress = Progress(epoch, layout=StepLayout(1, "1"))
        rows = rank_rows(opened.sequence, progress, lambda s, t: counted_rows(s, t, 1), rank=0, ranks=1)
        orders.append([opened.examples.read(ref).id for row in rows for ref in row.refs])
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == names(COUNT)


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    folder = without_index(written(tmp_path, 2))
    (folder / "shard-000000.tar").write_bytes(b"\0" * 1024)
    with pytest.raises(ValueError, match="the shards hold no examples"):
        open_sequence([MixtureConfig(str(folder))], StreamConfig(), count=True)


# ------------------------------------------------------------------ mixtures


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    written(tmp_path / "a", 12)
    written(tmp_path / "b", 6, first=100)
    return tmp_path


def mixture_of(path: Path, a: dict[str, Any], b: dict[str, Any]) -> SourceConfig:
    return SourceConfig(
        mixture=[MixtureConfig(str(path / "a"), **a), MixtureConfig(str(path / "b"), **b)], folder=str(path)
    )


def per_source(batches: list[Any]) -> list[int]:
    """Examples of a and of b."""
    first = sum(id < "e100" for id in flat(batches))
    return [first, len(flat(batches)) - first]


@pytest.mark.parametrize(
    ("a", "b", "drawn"),
    [
        ({}, {}, [12, 6]),
        ({"weight": 1.0}, {"weight": 1.0}, [9, 9]),
        ({"weight": 1.0}, {"weight": 5.0}, [3, 15]),
        ({"limit": 4}, {}, [4, 6]),
        ({"weight": 1.0, "limit": 2}, {"weight": 1.0}, [2, 4]),
    ],
)
def test_a_mixture_draws_by_weights_and_limits(
    mixed: Path, a: dict[str, Any], b: dict[str, Any], drawn: list[int]
) -> None:
    data = make_data(mixed, mixed, source=mixture_of(mixed, a, b))
    assert len(data.train_dataloader()) == -(-sum(drawn) // 2)
    module = fit(data, mixed, max_epochs=2)
    half = len(module.batches) // 2
    assert per_source(module.batches[:half]) == per_source(module.batches[half:]) == drawn
    if drawn[0] <= 6:  # What an epoch has left over comes in the next one.
        seen = Counter(id for id in flat(module.batches) if id < "e100")
        assert set(seen.values()) == {1}


def test_a_mixture_resumes_exactly(mixed: Path) -> None:
    def data() -> V1DataModule:
        source = mixture_of(mixed, {"weight": 2.0}, {"weight": 1.0, "limit": 4})
        return make_data(mixed, mixed, source=source, packing=PACKED)

    whole = fit(data(), mixed, max_epochs=2).batches
    path = mixed / "x.ckpt"
    part = fit(data(), mixed, SaveAfter(4, path, stop=True), max_epochs=2).batches
    assert part + fit(data(), mixed, resume=path, max_epochs=2).batches == whole


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ({"weight": 1.0}, {}, "1 of 2 sources have a weight, source 1 has none"),
        ({"weight": 1.0}, {"weight": -1.0}, "weights must be positive numbers"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(
    mixed: Path, a: dict[str, Any], b: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_data(mixed, mixed, source=mixture_of(mixed, a, b)).train_dataloader()


def test_a_mixture_without_an_index_is_refused_by_name(mixed: Path) -> None:
    without_index(mixed / "b")
    for more in ({}, {"weight": 1.0}, {"limit": 3}):
        with pytest.raises(
            ValueError, match=r"mixture: \S*/b has no index.*which a mixture needs.*v1lit data"
        ):
            make_data(mixed, mixed, source=mixture_of(mixed, more, more)).train_dataloader()
    alone = SourceConfig(mixture=[MixtureConfig(str(mixed / "b"), limit=3)])
    with pytest.raises(ValueError, match=r"/b has no index.*which a weight or a limit needs"):
        make_data(mixed, mixed, source=alone).train_dataloader()


# ------------------------------------------------------------------ few shards, few examples


@pytest.mark.parametrize("workers", [0, 2])
def test_fewer_shards_than_readers(tmp_path: Path, workers: int) -> None:
    folder = written(tmp_path / "one", 7, per_shard=100)
    module = fit(make_data(folder, tmp_path, num_workers=workers), tmp_path)
    assert sorted(flat(module.batches)) == names(7)


@pytest.mark.slow
@needs_fork
@pytest.mark.timeout(120)
@pytest.mark.parametrize("index", [True, False], ids=["indexed", "without"])
@pytest.mark.parametrize("packing", [None, PACKED], ids=["counted", "packed"])
def test_more_ranks_than_examples(tmp_path: Path, packing: PackingConfig | None, index: bool) -> None:
    """One rank has nothing to read, and makes its steps with blank batches."""
    folder = written(tmp_path / "one", 1)
    folder = folder if index else without_index(folder)
    data = make_data(folder, tmp_path, packing=packing, num_workers=1)
    ranks = fit_on_two_ranks(data, tmp_path, max_epochs=2)
    assert ranks == [[["e000"]] * 2, [[]] * 2]
    assert listed(tmp_path) == []


def test_lanes_are_read_side_by_side(tmp_path: Path) -> None:
    folder = written(tmp_path / "one", 23)
    data = make_data(folder, tmp_path, stream={"lanes": 4, "shuffle_window": 3})
    assert sorted(flat(fit(data, tmp_path).batches)) == names(23)
    with pytest.raises(ValueError, match=r"23 examples, fewer than the 24 of data.stream.lanes.*lanes=23"):
        make_data(folder, tmp_path, stream={"lanes": 24}).train_dataloader()


# ------------------------------------------------------------------ the last step, and padding


@pytest.mark.parametrize(("tail", "steps"), [("pad", 4), ("drop", 3)])
@pytest.mark.parametrize("index", [True, False], ids=["indexed", "without"])
def test_the_last_step_is_padded_or_dropped(tmp_path: Path, tail: str, steps: int, index: bool) -> None:
    """13 examples, 2 to a batch, 2 batches to a step."""
    folder = written(tmp_path / "one", COUNT)
    folder = folder if index else without_index(folder)
    data = make_data(folder, tmp_path, stream={"tail": tail})
    batches = fit(data, tmp_path, accumulate_grad_batches=2).batches
    assert len(batches) == 2 * steps
    assert len(flat(batches)) == (COUNT if tail == "pad" else 12)


def test_padded_batches_hold_examples_of_similar_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Qwen25VL, "packs", False, raising=False)
    folder = written(tmp_path / "one", COUNT)
    data = make_data(folder, tmp_path, group_by_length=4, num_workers=1)
    module = fit(data, tmp_path, max_epochs=2)
    assert Counter(flat(module.batches)) == dict.fromkeys(names(COUNT), 2)
    assert len(data.train_dataloader()) == 7
    part = fit(
        make_data(folder, tmp_path, group_by_length=4), tmp_path, SaveAfter(3, tmp_path / "x", stop=True)
    )
    rest = fit(make_data(folder, tmp_path, group_by_length=4), tmp_path, resume=tmp_path / "x")
    assert part.batches + rest.batches == module.batches[:7]
