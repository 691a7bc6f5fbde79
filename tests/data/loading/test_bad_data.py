"""Bad examples are left out, counted and listed, and the run goes on, up to a limit; nothing else is lost."""

from __future__ import annotations

import io
import json
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.faulty_server import FaultyServer, hang_up
from helpers.forked import needs_fork
from helpers.shard_cases import make, members_of, tar
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
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from v1lit.cli.failures import explain
from v1lit.cli.main import main
from v1lit.data.config import PackingConfig
from v1lit.data.encode import encoding
from v1lit.data.errors import BadDataError
from v1lit.data.example import Example
from v1lit.data.images import read_header
from v1lit.data.loading.dataset import ShardDataset
from v1lit.data.loading.skips import SKIPPED_FILE
from v1lit.data.shards import index_shards, list_shards, read_sidecar
from v1lit.data.shards.catalog import Catalog

COUNT, PER_SHARD = 15, 5
SHARDS = [f"shard-{number:06}.tar" for number in range(COUNT // PER_SHARD)]
BAD = 7
"""Number of the example that is spoiled, in the second shard."""
Members = list[tuple[str, bytes]]

# ------------------------------------------------------------------ spoiling


def sized(id: str, size: tuple[int, int]) -> Members:
    """An example with an image of this size."""
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "JPEG")
    example = replace(make(id), images=(read_header(buffer.getvalue()),))
    return [(f"{id}.{kind}", data) for kind, data in example.to_members().items()]


def garbled(id: str) -> Members:
    """An example with a PNG that only decoding finds to be damaged."""
    buffer = io.BytesIO()
    Image.effect_noise((40, 32), 99).save(buffer, "PNG")
    data = buffer.getvalue()
    at = data.index(b"IDAT") + 40
    example = replace(make(id), images=(read_header(data[:at] + b"\0" * 99 + data[at + 99 :]),))
    return [(f"{id}.{kind}", data) for kind, data in example.to_members().items()]


def claim_pixels(data: bytes) -> bytes:
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + (20_000).to_bytes(2, "big") * 2 + data[at + 4 :]


def changed(own: Members, kind: str, change: Callable[[bytes], bytes]) -> Members:
    return [(name, change(data) if name.endswith(kind) else data) for name, data in own]


WRONG: dict[str, tuple[str, Callable[[str, Members], Members]]] = {
    "missing member": ("member", lambda id, own: own[:1]),
    "unknown member": ("member", lambda id, own: [*own, (f"{id}.pyd", b"")]),
    "undecodable image": ("image", lambda id, own: changed(own, "jpg", lambda data: data[:-40])),
    "undecodable pixels": ("image", lambda id, own: garbled(id)),
    "too many pixels": ("image", lambda id, own: changed(own, "jpg", claim_pixels)),
    "broken rule": (
        "invalid",
        lambda id, own: changed(own, "json", lambda data: data.replace(b'"assistant"', b'"robot"')),
    ),
    "more than max_tokens": ("length", lambda id, own: sized(id, (420, 420))),
}  # fmt: skip
"""Examples that were wrong when they were written and indexed: their kind, and their members."""
DAMAGED = {"corrupt tar": 0, "wrong checksum": 900}
"""Bytes that changed after the shard was indexed: at which byte of the example."""
SPOILED = {**{what: kind for what, (kind, _) in WRONG.items()}, **dict.fromkeys(DAMAGED, "checksum")}


def place(folder: Path, number: int) -> tuple[Path, int, int]:
    """Shard of an example, and its first and last byte in it."""
    info = list_shards(folder)[number // PER_SHARD]
    offsets = read_sidecar(folder, info).offsets
    within = number % PER_SHARD
    return folder / info.file, int(offsets[within]), int(offsets[within + 1])


def damage(folder: Path, number: int, at: int) -> None:
    path, start, _ = place(folder, number)
    data = bytearray(path.read_bytes())
    data[start + at : start + at + 8] = b"\xff\xfe" * 4
    path.write_bytes(data)


def truncate(folder: Path, number: int) -> None:
    """Cut a shard off in the middle of an example."""
    path, start, end = place(folder, number)
    path.write_bytes(path.read_bytes()[: (start + end) // 2])


def spoil(folder: Path, spoiled: dict[int, str]) -> None:
    """Write some examples wrong, index all, and damage others."""
    own = [members_of(id) for id in names(COUNT)]
    for number, what in spoiled.items():
        if what in WRONG:
            own[number] = WRONG[what][1](names(1, number)[0], own[number])
    for shard, name in enumerate(SHARDS):
        here = own[shard * PER_SHARD : (shard + 1) * PER_SHARD]
        tar(folder / name, [member for members in here for member in members])
    index_shards(str(folder), workers=1)
    for number, what in spoiled.items():
        if what in DAMAGED:
            damage(folder, number, DAMAGED[what])


# ------------------------------------------------------------------ the run goes on


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, ...]]:
    """The batches of an epoch where nothing is wrong: the order depends on the counts alone."""
    path = tmp_path_factory.mktemp("healthy")
    written(path / "train", COUNT, PER_SHARD)
    return fit(make_data(path, path), path).batches


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    written(tmp_path / "train", COUNT, PER_SHARD)
    return tmp_path / "train"


def lacking(batches: list[tuple[str, ...]], lost: list[str]) -> list[tuple[str, ...]]:
    return [tuple(id for id in batch if id not in lost) for batch in batches]


def found(path: Path) -> Counter[tuple[str, str | None, str]]:
    return Counter((Path(one["shard"]).name, one["key"], one["kind"]) for one in listed(path))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("what", SPOILED)
def test_a_bad_example_alone_is_left_out_and_listed(
    folder: Path, healthy: list[tuple[str, ...]], what: str, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    kind = SPOILED[what]
    spoil(folder, {BAD: what})
    module = fit(make_data(folder.parent, folder, num_workers=workers), folder.parent)
    key = names(1, BAD)[0]
    assert module.batches == lacking(healthy, [key])
    (one,) = listed(folder.parent)
    assert (one["kind"], Path(one["shard"]).name, one["number"]) == (kind, SHARDS[1], BAD - PER_SHARD)
    assert one["key"] == (None if what == "corrupt tar" else key)
    assert (one["split"], one["epoch"]) == ("train", 0)
    flat = [id for batch in healthy for id in batch]
    assert flat[one["position"]] == key
    assert key in healthy[one["step"]]
    assert (
        f"skipped 1 of {COUNT} examples (1 {kind}); listed in {folder.parent / SKIPPED_FILE}" in caplog.text
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_of_a_truncated_shard_all_that_is_there_is_read(
    folder: Path, healthy: list[tuple[str, ...]], workers: int
) -> None:
    truncate(folder, BAD)
    module = fit(make_data(folder.parent, folder, num_workers=workers), folder.parent)
    lost = names(3, BAD)
    assert module.batches == lacking(healthy, lost)
    kinds = {(one["kind"], one["number"]) for one in listed(folder.parent)}
    assert kinds == {("shard", 2), ("shard", 3), ("shard", 4)}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("length", [None, 240], ids=["counted", "packed"])
def test_a_missing_shard_lacks_with_its_examples(
    folder: Path, healthy: list[tuple[str, ...]], workers: int, length: int | None
) -> None:
    (folder / SHARDS[1]).unlink()
    packing = PackingConfig(length)
    data = make_data(folder.parent, folder, num_workers=workers, packing=packing)
    module = fit(data, folder.parent)
    kept = [id for id in names(COUNT) if id not in names(5, 5)]
    assert sorted(id for batch in module.batches for id in batch) == kept
    if length is None:
        assert module.batches == lacking(healthy, names(5, 5))
    assert found(folder.parent) == {(SHARDS[1], None, "unreachable"): 5}
    assert {one["number"] for one in listed(folder.parent)} == set(range(5))


def test_an_index_that_is_damaged_costs_its_shard_alone(folder: Path, healthy: list[tuple[str, ...]]) -> None:
    (folder / SHARDS[1]).with_suffix(".index.safetensors").write_bytes(b"no index")
    module = fit(make_data(folder.parent, folder), folder.parent)
    assert module.batches == lacking(healthy, names(5, 5))
    assert found(folder.parent) == {(SHARDS[1], None, "shard"): 5}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreachable_remote_shard_lacks_with_its_examples(
    folder: Path, healthy: list[tuple[str, ...]], workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultyServer() as server:
        server.files = {f"d/train/{path.name}": path.read_bytes() for path in folder.iterdir()}
        server.always[f"d/train/{SHARDS[1]}"] = hang_up
        stream = {"attempts": 1}
        data = make_data(server.url("d"), folder.parent, num_workers=workers, stream=stream)
        module = fit(data, folder.parent)
    assert module.batches == lacking(healthy, names(5, 5))
    assert found(folder.parent) == {(SHARDS[1], None, "unreachable"): 5}
    assert all(one["shard"].startswith("http://127.0.0.1") for one in listed(folder.parent))
    assert "5 unreachable" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["while encoding", "inside of a library that catches every Exception"])
def test_an_example_that_takes_too_long_is_left_out(
    folder: Path,
    healthy: list[tuple[str, ...]],
    where: str,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The alarm goes off inside of one example, as it does when its time is up."""
    key = names(1, BAD)[0]
    if where == "while encoding":
        tokenize = encoding.tokenize

        def slow(example: Example, *rest: Any) -> Any:
            if example.id == key:
                signal.raise_signal(signal.SIGALRM)
            return tokenize(example, *rest)

        monkeypatch.setattr(encoding, "tokenize", slow)
    else:
        tar(
            folder / SHARDS[1],
            [m for id in names(5, 5) for m in (sized(id, (44, 32)) if id == key else members_of(id))],
        )
        index_shards(str(folder), workers=1)
        load = JpegImageFile.load

        def slow_load(image: JpegImageFile) -> Any:
            if image.size == (44, 32):
                signal.raise_signal(signal.SIGALRM)
            return load(image)

        monkeypatch.setattr(JpegImageFile, "load", slow_load)
    module = fit(make_data(folder.parent, folder, num_workers=workers), folder.parent)
    assert module.batches == lacking(healthy, [key])
    assert found(folder.parent) == {(SHARDS[1], key, "slow"): 1}
    assert "data.stream.max_seconds=60" in listed(folder.parent)[0]["reason"]


def test_fetching_a_shard_has_limits_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download may take longer than any example should."""
    fetch = Catalog.fetch

    def slow(catalog: Catalog, shard: int) -> Path:
        assert signal.getitimer(signal.ITIMER_REAL)[0] <= before
        return fetch(catalog, shard)

    before = signal.getitimer(signal.ITIMER_REAL)[0]
    monkeypatch.setattr(Catalog, "fetch", slow)
    data = make_data(folder.parent, folder, stream={"max_seconds": 1e6})
    assert len(list(data.train_dataloader())) == -(-COUNT // 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_example_that_fits_no_row_is_left_out(folder: Path, workers: int) -> None:
    key = names(1, BAD)[0]
    two = [(f"{key}.{kind}", data) for kind, data in make(key, images=2).to_members().items()]
    tar(folder / SHARDS[1], [m for id in names(5, 5) for m in (two if id == key else members_of(id))])
    index_shards(str(folder), workers=1)
    packing = PackingConfig(240, max_images=1)
    data = make_data(folder.parent, folder, num_workers=workers, packing=packing)
    module = fit(data, folder.parent)
    assert sorted(id for batch in module.batches for id in batch) == [n for n in names(COUNT) if n != key]
    assert found(folder.parent) == {(SHARDS[1], key, "length"): 1}
    assert "more than the 1 of data.packing.max_images" in listed(folder.parent)[0]["reason"]


def test_a_bad_example_in_a_filled_row_lacks_there(folder: Path) -> None:
    spoiled = {2: "missing member", 3: "wrong checksum", BAD: "undecodable image", 11: "broken rule"}
    spoil(folder, spoiled)
    module = fit(make_data(folder.parent, folder, packing=PackingConfig(240)), folder.parent)
    kinds = {names(1, number)[0]: SPOILED[what] for number, what in spoiled.items()}
    assert sorted(id for batch in module.batches for id in batch) == [
        n for n in names(COUNT) if n not in kinds
    ]
    assert {one["key"]: one["kind"] for one in listed(folder.parent)} == kinds


# ------------------------------------------------------------------ without an index


def test_without_an_index_a_damaged_shard_is_left_out_as_a_whole(folder: Path) -> None:
    truncate(folder, BAD)
    damage(folder, 0, 0)
    without_index(folder)
    module = fit(make_data(folder.parent, folder), folder.parent)
    assert sorted(id for batch in module.batches for id in batch) == names(5, 10)
    assert {(Path(one["shard"]).name, one["kind"], one["number"]) for one in listed(folder.parent)} == {
        (SHARDS[0], "shard", -1),
        (SHARDS[1], "shard", -1),
    }


@pytest.mark.parametrize("window", [1, 10_000])
@pytest.mark.parametrize("broken", range(len(SHARDS)))
def test_damaged_shards_are_listed_wherever_they_come(folder: Path, broken: int, window: int) -> None:
    """Also behind the last batch of the epoch, and several of them in different steps."""
    for shard in range(len(SHARDS)):
        if shard != broken:
            truncate(folder, shard * PER_SHARD)
    without_index(folder)
    fit(make_data(folder.parent, folder, stream={"shuffle_window": window}), folder.parent, max_epochs=2)
    assert sorted(Path(one["shard"]).name for one in listed(folder.parent)) == [
        name for number, name in enumerate(SHARDS) if number != broken
    ]


def test_nothing_but_damage_is_an_error_that_says_so(folder: Path) -> None:
    for number in range(0, COUNT, PER_SHARD):
        damage(folder, number, 0)
        truncate(folder, number + 1)
    with pytest.raises(BadDataError, match=r"skipped 12 of 12 examples .*: more than data.stream.max_bad_"):
        fit(make_data(folder.parent, folder), folder.parent)
    without_index(folder)
    (folder.parent / SKIPPED_FILE).unlink()
    with pytest.raises(
        BadDataError, match=r"skipped 3 of 3 examples \(3 shard\).*no example .* could be used: 3 x "
    ):
        fit(make_data(folder.parent, folder), folder.parent)
    assert len(listed(folder.parent)) == 3


def test_shards_without_an_example_are_called_so(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    tar(folder / "shard-000000.tar", [])
    with pytest.raises(ValueError, match=f"no training examples: the shards of {folder} hold none"):
        fit(make_data(folder.parent, folder), folder.parent)


def test_one_by_one_a_damaged_shard_is_no_less_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    truncate(folder, BAD)
    without_index(folder)
    with pytest.raises(ValueError, match=SHARDS[1]):
        ShardDataset(folder)
    dataset = ShardDataset(folder, on_bad="skip")
    assert "skipped with all its examples" in caplog.text
    assert sorted(one.id for one in dataset) == [*names(5), *names(5, 10)]
    assert [Path(one.shard).name for one in dataset.skipped] == [SHARDS[1]]


# ------------------------------------------------------------------ limits


def test_a_run_that_is_to_stop_names_the_example(folder: Path) -> None:
    damage(folder, BAD, 900)
    with pytest.raises(
        BadDataError, match=rf"checksum: shard .*{SHARDS[1]}, example 'e007'.*\n.*on_bad=skip"
    ):
        fit(make_data(folder.parent, folder, stream={"on_bad": "stop"}), folder.parent)
    assert len(listed(folder.parent)) == 1


def test_too_large_a_share_stops_the_run(folder: Path) -> None:
    for number in (1, BAD, 12):
        damage(folder, number, 900)
    fit(make_data(folder.parent, folder, stream={"max_bad_fraction": 0.003}), folder.parent)
    with pytest.raises(
        BadDataError, match=r"skipped 3 of .*max_bad_fraction=0.002 allows; .*example 'e0"
    ) as caught:
        fit(make_data(folder.parent, folder, stream={"max_bad_fraction": 0.002}), folder.parent)
    told = explain(caught.value)
    assert told is not None
    assert told.code == 1


IN_A_ROW = {"max_bad_in_a_row": 4, "shuffle_window": 1, "max_bad_fraction": 1.0}


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_in_a_row_stop_the_run(folder: Path, workers: int) -> None:
    (folder / SHARDS[1]).unlink()
    with pytest.raises(BadDataError, match=r"skipped 5 of .*max_bad_in_a_row=4 in a row; the last one: unre"):
        fit(make_data(folder.parent, folder, num_workers=workers, stream=IN_A_ROW), folder.parent)
    allowed = make_data(
        folder.parent, folder, num_workers=workers, stream={**IN_A_ROW, "max_bad_in_a_row": 5}
    )
    fit(allowed, folder.parent)


@needs_fork
@pytest.mark.timeout(120)
@pytest.mark.parametrize("stream", [{"max_bad_fraction": 0.0}, {**IN_A_ROW, "max_bad_in_a_row": 1}])
def test_two_ranks_stop_together(folder: Path, stream: dict[str, Any]) -> None:
    """Only one of them meets the bad example, where it is one."""
    if "max_bad_in_a_row" in stream:
        (folder / SHARDS[1]).unlink()
    else:
        damage(folder, BAD, 900)
    with pytest.raises(Exception, match="BadDataError"):
        fit_on_two_ranks(make_data(folder.parent, folder, stream=stream), folder.parent)
    assert listed(folder.parent)


@needs_fork
@pytest.mark.timeout(120)
def test_two_ranks_list_together_what_each_has_skipped(folder: Path) -> None:
    written(folder.parent / "val", 5)
    bad = (1, 4, BAD, 12)
    for number in bad:
        damage(folder, number, 900)
    damage(folder.parent / "val", 3, 900)
    ranks = fit_on_two_ranks(make_data(folder.parent, folder), folder.parent)
    used = sorted(id for rank in ranks for batch in rank for id in batch)
    assert used == [id for number, id in enumerate(names(COUNT)) if number not in bad]
    shards = [(SHARDS[number // PER_SHARD], f"e{number:03}", "checksum") for number in (*bad, 3)]
    assert found(folder.parent) == Counter(shards)
    assert Counter(one["split"] for one in listed(folder.parent)) == {"train": 4, "val": 1}


@needs_fork
@pytest.mark.timeout(120)
def test_a_shard_that_both_ranks_find_damaged_counts_once(folder: Path) -> None:
    truncate(folder, BAD)
    without_index(folder)
    ranks = fit_on_two_ranks(make_data(folder, folder, stream={"max_bad_fraction": 0.001}), folder.parent)
    assert sorted(id for rank in ranks for batch in rank for id in batch) == [*names(5), *names(5, 10)]
    assert [Path(one["shard"]).name for one in listed(folder.parent)] == [SHARDS[1]]


@pytest.mark.slow
def test_the_command_line_ends_with_1(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(folder, BAD, 900)
    monkeypatch.chdir(folder.parent)
    arguments = {
        "data.source.name": "shards", "data.source.options": "{}", "data.source.folder": str(folder.parent),
        "data.stream.max_bad_fraction": 0, "trainer.max_steps": 20, "run.name": "bad",
    }  # fmt: skip
    code = main(["run", "tiny_qwen", *(f"--{key}={value}" for key, value in arguments.items())])
    err = capsys.readouterr().err
    assert code == 1, err
    assert "skipped 1 of" in err
    assert "data.stream.max_bad_fraction=0" in err
    (file,) = folder.parent.rglob(SKIPPED_FILE)
    assert json.loads(file.read_text())["key"] == "e007"


# ------------------------------------------------------------------ resuming


@pytest.mark.parametrize("stop", [1, 4, 7, 8, 10])
def test_a_resumed_run_keeps_the_list_and_lists_nothing_twice(
    folder: Path, tmp_path: Path, stop: int, caplog: pytest.LogCaptureFixture
) -> None:
    """From a checkpoint in an epoch, at its end (8 steps), in the next one; the first run went on longer."""
    for number in range(0, COUNT, 2):
        damage(folder, number, 900)
    stream = {"max_bad_fraction": 1.0}
    fit(make_data(folder.parent, folder, stream=stream), tmp_path / "whole", max_epochs=2)
    whole = listed(tmp_path / "whole")
    assert len(whole) == 16
    path, part = tmp_path / "x.ckpt", tmp_path / "part"
    save = SaveAfter(stop, path)
    fit(make_data(folder.parent, folder, stream=stream), part, save, max_epochs=2)
    with (part / SKIPPED_FILE).open("a") as file:
        file.write('{"split": "train", "epo')  # killed while it wrote
    caplog.clear()
    fit(make_data(folder.parent, folder, stream=stream), part, resume=path, max_epochs=2)
    assert listed(part) == whole
    assert "skipped 16 of 3" in caplog.text
    assert "(16 checksum)" in caplog.text


def test_limits_count_what_was_skipped_before_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    """On every rank alike, though only the first one knows the file."""
    for number in range(0, COUNT, 2):
        damage(folder, number, 900)
    path = tmp_path / "x.ckpt"
    fit(make_data(folder.parent, folder), tmp_path, SaveAfter(4, path, stop=True))
    (tmp_path / SKIPPED_FILE).unlink()
    strict = make_data(folder.parent, folder, stream={"max_bad_fraction": 0.0075})
    with pytest.raises(BadDataError, match="skipped 8 of"):
        fit(strict, tmp_path, resume=path)


def test_damaged_shards_without_an_index_are_listed_once_over_a_stop(folder: Path, tmp_path: Path) -> None:
    truncate(folder, BAD)
    without_index(folder)
    path = tmp_path / "x.ckpt"
    fit(make_data(folder.parent, folder), tmp_path, SaveAfter(3, path, stop=True))
    fit(make_data(folder.parent, folder), tmp_path, resume=path)
    assert [Path(one["shard"]).name for one in listed(tmp_path)] == [SHARDS[1]]


# ------------------------------------------------------------------ validation


@pytest.mark.parametrize("limit", [1.0, 2], ids=["all", "cut short"])
def test_validation_examples_are_listed_too(folder: Path, tmp_path: Path, limit: float) -> None:
    val = written(tmp_path / "val", 7, PER_SHARD)
    damage(val, 2, 900)
    module = fit(make_data(tmp_path, folder), tmp_path, max_epochs=3, limit_val_batches=limit)
    kept = [("e000", "e001"), ("e003",), ("e004", "e005"), ("e006",)][: limit if limit == 2 else None]
    assert module.val_batches == kept * 3
    (one,) = listed(tmp_path)
    assert (one["split"], one["key"], one["kind"], one["step"]) == ("val", "e002", "checksum", 1)


def test_a_damaged_validation_shard_without_an_index_is_listed(folder: Path, tmp_path: Path) -> None:
    val = written(tmp_path / "val", 10, PER_SHARD)
    truncate(val, 7)
    without_index(val)
    module = fit(make_data(tmp_path, folder), tmp_path)
    assert [id for batch in module.val_batches for id in batch] == names(5)
    (one,) = listed(tmp_path)
    assert (one["split"], Path(one["shard"]).name, one["kind"]) == ("val", SHARDS[1], "shard")


# ------------------------------------------------------------------ nothing is lost silently


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pieces")


@settings(max_examples=25)
@given(
    spoiled=st.dictionaries(st.integers(0, COUNT - 1), st.sampled_from(sorted(SPOILED)), max_size=8),
    cut=st.none() | st.integers(0, COUNT - 1),
    packing=st.sampled_from([PackingConfig(), PackingConfig(240)]),
)
def test_what_is_read_and_what_is_skipped_is_everything(
    pieces: Path, spoiled: dict[int, str], cut: int | None, packing: PackingConfig
) -> None:
    folder = pieces / "train"
    folder.mkdir(exist_ok=True)
    spoil(folder, spoiled)
    if cut is not None:
        truncate(folder, cut)
    data = make_data(pieces, pieces, packing=packing, stream={"max_bad_fraction": 1.0})
    lost = {*spoiled, *(range(cut, cut - cut % PER_SHARD + PER_SHARD) if cut is not None else ())}
    try:
        read = [id for batch in data.train_dataloader() for id in batch.ids]
    except BadDataError:
        assert len(lost) == COUNT
        return
    skipped = data._skips.skipped
    assert sorted(read) == [id for number, id in enumerate(names(COUNT)) if number not in lost]
    places = sorted(SHARDS.index(Path(one.shard).name) * PER_SHARD + one.number for one in skipped)
    assert places == sorted(lost)
    assert data._skips.read == COUNT
