"""The data benchmark is fair: all read the same, nobody skips anything, and what is missing says why."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import data
import data_readers
import data_rival
import data_shards
import data_workers
import pytest
from data_readers import Local, Rival, Seconds, in_turn
from data_workers import MIB, Epoch, Look, Memory
from measure import MeasureError
from PIL import Image
from rows import Row

EXAMPLES = 8


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> data_shards.Shards:
    return data_shards.make_shards(tmp_path_factory.mktemp("data") / "shards", EXAMPLES, pictures=3)


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    """An interpreter that runs `rival` of the folder instead of what it is asked to run."""
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nexec(open({str(tmp_path / 'rival')!r}).read())\n")
    python.chmod(0o755)
    return str(python)


def sums(pixels: Iterator[Image.Image]) -> Counter[str]:
    return Counter(hashlib.sha256(one.tobytes()).hexdigest() for one in pixels)


# --- shards ---


def test_the_same_shards_are_made_every_time(shards: data_shards.Shards, tmp_path: Path) -> None:
    again = data_shards.make_shards(tmp_path / "shards", EXAMPLES, pictures=3)
    assert len(shards.files) == data_shards.SHARDS
    assert shards.examples == EXAMPLES
    assert [file.read_bytes() for file in again.files] == [file.read_bytes() for file in shards.files]


def test_pictures_are_as_large_as_photographs(shards: data_shards.Shards) -> None:
    assert all(80_000 <= size <= 120_000 for places in shards.places for _, size in places)
    image, boxes = data_shards.draw_picture(0)
    assert image.size == (672, 672)
    assert data_shards.make_example(0, image, boxes).regions.keys() == {
        f"<|region_{number}|>" for number in range(1, len(boxes) + 1)
    }


# --- readers ---


def test_all_contenders_read_the_same_pixels(shards: data_shards.Shards) -> None:
    limit = sums(data_readers.read_limit(shards))
    assert limit.total() == EXAMPLES
    assert sums(data_readers.read_webdataset(shards, decoded=True)) == limit
    assert sums(data_readers.read_v1lit(shards, lambda one: data_readers.decode(one.images[0].data))) == limit


def test_the_raw_reader_reads_every_byte(shards: data_shards.Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_readers, "BLOCK", 50_000)
    passed = list(data_readers.read_raw(shards))
    assert len(passed) == EXAMPLES
    assert all(
        start + size <= read
        for read, (start, size) in zip(passed, [one for file in shards.places for one in file], strict=True)
    )


def test_everything_is_decoded_and_nothing_is_left_out(shards: data_shards.Shards) -> None:
    for group in (data_readers.decoding(shards), data_readers.not_decoding(shards)):
        taken = in_turn(group, EXAMPLES, laps=1, chunk=3)
        assert taken.keys() == group.keys()
        assert all(one.wall > 0 for one in taken.values())


@pytest.mark.parametrize("given", [0, 9])
def test_a_reader_that_loses_examples_is_refused(given: int) -> None:
    readers = {"good": Local(lambda: iter(range(10))), "bad": Local(lambda: iter(range(given)))}
    with pytest.raises(MeasureError, match=f"^bad gave {given} of 10 examples$"):
        in_turn(readers, 10, laps=2, chunk=4)


def test_turns_are_taken_in_small_chunks() -> None:
    said = ""

    def speak(name: str) -> Iterator[None]:
        nonlocal said
        for _ in range(4):
            said += name
            yield

    in_turn({name: Local(lambda name=name: speak(name)) for name in "ab"}, 4, laps=1, chunk=2)
    assert said == "aabb" + "aabb" + "bbaa"


def test_a_hiccup_in_one_lap_does_not_count() -> None:
    laps = [[Seconds(wall, 1.0) for wall in lap] for lap in ([1.0, 9.0], [7.0, 2.0], [1.0, 2.0])]
    assert data_readers._together(laps) == Seconds(3.0, 2.0)


def test_the_process_is_as_before_afterwards() -> None:
    blocks = Image.core.get_blocks_max()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    with data.same_memory(5), data_readers.one_core():
        assert Image.core.get_blocks_max() == 5
        if cores:
            assert len(os.sched_getaffinity(0)) == 1
    assert Image.core.get_blocks_max() == blocks
    assert "PILLOW_BLOCKS_MAX" not in os.environ
    if cores:
        assert os.sched_getaffinity(0) == cores


# --- rivals ---


def test_a_rival_answers_line_by_line(shards: data_shards.Shards, stand_in: str, tmp_path: Path) -> None:
    (tmp_path / "rival").write_text(
        "import json, sys\n"
        "say = lambda what: print(json.dumps(what), flush=True)\n"
        "say({'other': '1.2'})\n"
        "for line in sys.stdin:\n"
        "    say({'cpu': 0.5, 'examples': int('0' + line.strip()[5:])})\n"
    )
    rival = data_readers.find_rival([stand_in], "energon", shards)
    assert isinstance(rival, Rival)
    rival.open()
    assert (rival.take(7), rival.cpu, rival.versions) == (7, 0.5, "other 1.2")
    rival.close()


def test_a_rival_that_ends_early_says_why(shards: data_shards.Shards, stand_in: str, tmp_path: Path) -> None:
    (tmp_path / "rival").write_text("import sys; print('{}', flush=True); input(); sys.exit('no more')")
    rival = Rival(stand_in, "energon", shards)
    with pytest.raises(MeasureError, match=r"^no more$"):
        rival.open()


@pytest.mark.parametrize(
    ("code", "reason"),
    [("import sys; sys.exit('no such library')", "no such library"), ("", "without a word")],
)
def test_a_rival_that_does_not_start_says_why(
    code: str, reason: str, shards: data_shards.Shards, stand_in: str, tmp_path: Path
) -> None:
    (tmp_path / "rival").write_text(code)
    found = data_readers.find_rival([stand_in, str(tmp_path / "nowhere")], "energon", shards)
    assert isinstance(found, str)
    assert reason in found
    assert found.endswith("nowhere cannot be started (No such file or directory)")
    (row,) = data.rows_of_rivals({}, {"energon": found}, shards, asked=True)
    assert (row.value, row.note) == (None, found)


def test_rivals_nobody_asked_for_say_how_to_get_them(shards: data_shards.Shards) -> None:
    rivals = {name: data_readers.find_rival([], name, shards) for name in data.RIVALS}
    rows = data.rows_of_rivals({}, rivals, shards, asked=False)
    assert [row.value for row in rows] == [None, None]
    for row, package in zip(rows, ("megatron-energon", "mosaicml-streaming"), strict=True):
        assert f"pip install {package}" in row.note
        assert "--rival-python" in row.note
    assert {name: package for name, (package, _) in data_rival.RIVALS.items()} == data.RIVALS


def test_rivals_decode_as_everybody_does(shards: data_shards.Shards) -> None:
    start, size = shards.places[0][0]
    jpeg = shards.files[0].read_bytes()[start : start + size]
    theirs = data_rival.finish({"json": b"{}", "jpg": jpeg})
    assert theirs.mode == "RGB"
    assert theirs.tobytes() == data_readers.decode(jpeg).tobytes()


# --- workers ---

ROLLUP = """\
55d5c0a00000-7ffd1b5f2000 ---p 00000000 00:00 0                          [rollup]
Rss:                1000 kB
Pss:                 400 kB
Pss_Dirty:           300 kB
Shared_Clean:        200 kB
Private_Clean:        30 kB
Private_Dirty:       250 kB
"""


def test_memory_is_what_a_process_holds_alone() -> None:
    assert data_workers.read_memory(ROLLUP) == Memory(own=280 * 1024, share=400 * 1024)


def looks(*megabytes: float) -> Epoch:
    """An epoch with two workers, of which the second holds so much at every look."""
    count = len(megabytes)
    return Epoch(
        memory=[
            Look((number + 1) / count, [Memory(MIB, MIB), Memory(int(held * MIB), MIB)])
            for number, held in enumerate(megabytes)
        ]
    )


@pytest.mark.parametrize(
    ("held", "grown", "met"),
    [
        ([50, 100, 100, 100, 100, 100, 100, 100], 0.0, True),
        ([50, 100, 100, 100, 100, 100, 150, 100], 0.0, True),  # one batch more under way: no growth
        ([50, 60, 100, 100, 104, 104, 106, 106], 6.0, False),
    ],
)
def test_growth_is_seen_and_a_single_peak_is_none(held: list[float], grown: float, met: bool) -> None:
    *parts, growth = data.rows_of_memory(looks(*held), workers=2)
    assert parts[0].value == held[0]
    assert growth.value == pytest.approx(grown)
    assert growth.met is met


def test_memory_that_nobody_tells_is_missing() -> None:
    rows = data.rows_of_memory(Epoch(memory=[Look(0.5, []), Look(1.0, [])]), workers=1)
    assert all(row.value is None and "Linux" in row.note for row in rows)


def test_an_epoch_of_packed_batches_is_whole_and_saves_its_state(shards: data_shards.Shards) -> None:
    epoch = data_workers.run_epoch(data_workers.data_module(shards.folder, 0), EXAMPLES, states=True)
    assert epoch.examples == EXAMPLES
    assert len(epoch.state_seconds) == epoch.batches > 0
    assert epoch.state_bytes > 0
    assert epoch.state_share > 0


# --- rows ---


def taken(**walls: float) -> dict[str, Seconds]:
    names = {"v1lit_decode_image": "v1lit, decode_image"}
    return {names.get(name, name): Seconds(wall, wall) for name, wall in walls.items()}


@pytest.mark.parametrize(
    ("ours", "met"), [(10.5, (True, True)), (10.8, (False, True)), (11.2, (False, False))]
)
def test_goals_are_judged(ours: float, met: tuple[bool, bool], shards: data_shards.Shards) -> None:
    times = taken(limit=10.0, webdataset=10.2, v1lit=ours, v1lit_decode_image=12.0)
    rows = data.rows_of_decoding(times, shards)
    assert tuple(row.met for row in rows if row.goal) == met
    by_title = {row.title: row for row in rows}
    mine = by_title[f"{data.TITLE} to RGB, v1lit"]
    assert mine.value == pytest.approx(EXAMPLES / ours)
    assert mine.share == pytest.approx(10.0 / ours)


def test_state_that_costs_too_much_misses_its_goal() -> None:
    cheap = Epoch(batches=10, seconds=1.0, state_seconds=[0.0005] * 10)
    dear = Epoch(batches=10, seconds=1.0, state_seconds=[0.005] * 10)
    assert [data.rows_of_state(epoch)[0].met for epoch in (cheap, dear)] == [True, False]


def test_every_row_stands_alone(shards: data_shards.Shards) -> None:
    plain = data.rows_without_decoding(taken(raw=1.0, webdataset=2.0, v1lit=3.0), shards)
    packed = data.rows_of_packing({2: Epoch(examples=8, batches=4, seconds=2.0)}, limit=100.0)
    rows: list[Row] = [*plain, *packed]
    assert len({row.title + row.unit for row in rows}) == len(rows)
    assert all(row.unit and row.value for row in rows)
