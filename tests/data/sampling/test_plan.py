"""The plan: every example once, in an order of seed and epoch alone, however it is divided and resumed."""

from __future__ import annotations

import re
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from v1lit.data.config import PackingConfig
from v1lit.data.example import ExampleRef
from v1lit.data.lengths.length import Length
from v1lit.data.sampling import mixture
from v1lit.data.sampling.epoch import MakeRows, Progress, StepLayout, rank_rows, steps_left
from v1lit.data.sampling.mixture import GlobalSequence, draws_per_epoch
from v1lit.data.sampling.remaining import MicroBatchState, Remaining
from v1lit.data.sampling.rows import MicroBatchPlan, Substream, counted_rows, filled_rows, similar_rows
from v1lit.data.sampling.shuffle import Shuffle, SourceOrder

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda counts: sum(counts) > 0)
Step = list[tuple[ExampleRef, ...]]


def order_of(counts: list[int], seed: int = 0, window: int = 7, lanes: int = 1, salt: int = 0) -> SourceOrder:
    return SourceOrder(counts, Shuffle(seed, True, window), lanes=lanes, salt=salt)


def sequence_of(counts: list[int], **options: int) -> GlobalSequence:
    return GlobalSequence([order_of(counts, **options)], [sum(counts)], options.get("seed", 0))


def all_of(sequence: GlobalSequence, epoch: int) -> list[tuple[int, int, int]]:
    assert sequence.length is not None
    refs = sequence.find(epoch, np.arange(sequence.length))
    table = np.stack([refs.sources, refs.shards, refs.indices], axis=1)
    return [tuple(map(int, row)) for row in table if row[1] >= 0]


def everything(counts: list[int], source: int = 0) -> Counter[tuple[int, int, int]]:
    return Counter((source, shard, index) for shard, count in enumerate(counts) for index in range(count))


# ------------------------------------------------------------------ order


@given(counts=COUNTS, seed=st.integers(0, 2**31), window=st.integers(1, 60), epoch=st.integers(0, 3))
def test_an_epoch_holds_every_example_once(counts: list[int], seed: int, window: int, epoch: int) -> None:
    sequence = sequence_of(counts, seed=seed, window=window)
    assert Counter(all_of(sequence, epoch)) == everything(counts)
    assert all_of(sequence_of(counts, seed=seed, window=window), epoch) == all_of(sequence, epoch)


@settings(max_examples=40)
@given(counts=COUNTS, lanes=st.integers(1, 9), data=st.data())
def test_an_epoch_index_is_found_without_those_before_it(
    counts: list[int], lanes: int, data: st.DataObject
) -> None:
    lanes = min(lanes, sum(counts))
    whole = all_of(sequence_of(counts, lanes=lanes), 1)
    sequence = sequence_of(counts, lanes=lanes)
    assert sequence.length is not None
    asked = data.draw(st.lists(st.integers(0, sequence.length - 1), max_size=8))
    refs = sequence.find(1, np.array(asked, dtype=np.int64))
    every = sequence.find(1, np.arange(sequence.length))
    for place, index in enumerate(asked):
        assert (refs.shards[place], refs.indices[place]) == (every.shards[index], every.indices[index])
    assert Counter(whole) == everything(counts)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    counts = [20] * 10
    orders = [all_of(sequence_of(counts, seed=seed), epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_the_window_bounds_how_far_examples_are_mixed() -> None:
    order = SourceOrder([10] * 20, Shuffle(3, True, 25))
    shards, indices = order.find(0, 0, np.arange(200))
    for start in range(0, 200, 25):
        near = set(shards[start : start + 25].tolist())
        assert len(near) <= 4  # 25 examples lie in at most 4 shards of 10
    unshuffled = SourceOrder([10] * 20, Shuffle(3, False, 25)).find(0, 0, np.arange(200))
    assert (unshuffled[0] * 10 + unshuffled[1]).tolist() == list(range(200))
    assert (shards * 10 + indices).tolist() != list(range(200))


@settings(max_examples=40)
@given(counts=COUNTS, window=st.integers(1, 60), epochs=st.integers(1, 3))
def test_counting_shards_while_reading_gives_the_order_of_an_index(
    counts: list[int], window: int, epochs: int
) -> None:
    asked: list[int] = []

    def discover(shard: int) -> int:
        asked.append(shard)
        return counts[shard]

    forward = SourceOrder([None] * len(counts), Shuffle(5, True, window), discover=discover)
    sequence = GlobalSequence([forward], [None], 5)
    known = sequence_of(counts, seed=5, window=window)
    assert sequence.length is None
    for epoch in range(epochs):
        expected = all_of(known, epoch)
        singly = [sequence.find(epoch, np.array([index])) for index in range(sum(counts) + 3)]
        read = [(int(refs.sources[0]), int(refs.shards[0]), int(refs.indices[0])) for refs in singly]
        assert read[: sum(counts)] == expected
        assert read[sum(counts) :] == [(-1, -1, -1)] * 3
    assert sorted(asked) == list(range(len(counts)))  # every shard once
    assert sequence.length == sum(counts)


# ------------------------------------------------------------------ mixtures


@given(
    sizes=st.lists(st.integers(1, 4000), min_size=2, max_size=4),
    weights=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    lanes=st.integers(1, 4),
)
def test_a_mixture_gives_every_source_its_share_all_along(
    sizes: list[int], weights: list[float], lanes: int
) -> None:
    sizes = [max(size, lanes) for size in sizes]
    sizes[0] += 1000  # No weight is less than one of these examples.
    draws = draws_per_epoch(sizes, weights[: len(sizes)], [None] * len(sizes))
    assert sum(draws) == sum(sizes)
    orders = [order_of([size], lanes=lanes, salt=number, window=50) for number, size in enumerate(sizes)]
    sequence = GlobalSequence(orders, draws, 0)
    total = sum(weights[: len(sizes)])
    drawn = [source for source, _, _ in all_of(sequence, 0)]
    for number in range(len(sizes)):
        share = weights[number] / total
        assert abs(drawn.count(number) - share * len(drawn)) <= 1
        part = drawn[: len(drawn) // 2]
        # Within half an epoch the share is off by what one block of each lane may hold.
        assert abs(part.count(number) - share * len(part)) <= 2 * lanes * len(sizes) + min(
            1100 * lanes, len(part)
        )


def test_the_example_of_the_mixture_in_its_docstring_is_true() -> None:
    orders = [order_of([size], seed=2, salt=salt) for salt, size in enumerate([3, 4])]
    sequence = GlobalSequence(orders, [4, 2], 2)
    rows: dict[str, list[int]] = {"source": [], "draw": [], "endless": [], "source epoch": [], "offset": []}
    for epoch in range(2):
        sources, draws = sequence._draws_at(epoch, 0, np.arange(6))
        for source, draw in zip(sources.tolist(), draws.tolist(), strict=True):
            ((source_epoch,), (offset,)) = sequence._endless(source, epoch, 0, np.array([draw]))
            endless = epoch * (4, 2)[source] + draw
            for row, value in zip(rows.values(), (source, draw, endless, source_epoch, offset), strict=True):
                row.append(int(value))
    for name, row in rows.items():
        (line,) = re.findall(rf"^    {name}  +((?:\d +){{12}})", f"{mixture.__doc__}\n", re.MULTILINE)
        assert [int(value) for value in line.split()] == row, name


def test_a_source_is_read_on_where_the_last_epoch_stopped_in_it() -> None:
    sizes, weights = [60, 40], [1.0, 4.0]  # 20 and 80 draws per epoch
    sequence = GlobalSequence(
        [order_of([20, 40], salt=0), order_of([40], salt=1)], draws_per_epoch(sizes, weights, [None, None]), 0
    )
    epochs = [all_of(sequence, epoch) for epoch in range(3)]
    assert Counter(place for epoch in epochs for place in epoch if place[0] == 0) == everything([20, 40], 0)
    assert set(Counter(place for place in epochs[0] if place[0] == 1).values()) == {2}


def test_a_limit_takes_so_many_and_others_in_the_next_epoch() -> None:
    assert draws_per_epoch([100, 50], [None, None], [30, None]) == [30, 50]
    sequence = GlobalSequence([order_of([100], salt=0), order_of([50], salt=1)], [30, 50], 0)
    first, second = ({place for place in all_of(sequence, epoch) if place[0] == 0} for epoch in (0, 1))
    assert len(first) == len(second) == 30
    assert not first & second


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0, None], "source 1 has none"), ([1.0, 0.0], "positive"), ([1.0, float("nan")], "positive")],
)
def test_weights_that_make_no_sense_are_refused(weights: list[float | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draws_per_epoch([10, 10], weights, [None, None])


def test_a_weight_too_small_for_one_example_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight of 0.001 among .* less than one of the 20 examples"):
        draws_per_epoch([10, 10], [1.0, 0.001], [None, None])


def test_a_mixture_and_lanes_need_an_index() -> None:
    unknown = SourceOrder([None], Shuffle(), discover=lambda shard: 3)
    with pytest.raises(ValueError, match=r"a mixture.*v1lit data index"):
        GlobalSequence([unknown, order_of([3])], [None, 3], 0)
    with pytest.raises(ValueError, match=r"lanes > 1.*v1lit data index"):
        GlobalSequence([SourceOrder([None], Shuffle(), lanes=2, discover=lambda shard: 3)], [None], 0)
    with pytest.raises(ValueError, match=r"3 examples, fewer than the 4 of data.stream.lanes"):
        GlobalSequence([order_of([3], lanes=4)], [3], 0)


# ------------------------------------------------------------------ micro-batches and ranks


def test_what_remains_is_what_waits_what_is_unread_and_the_tail() -> None:
    """The example of `Remaining.after`, and once more behind it."""
    states = [MicroBatchState(3, (2,)), MicroBatchState(1)]
    first = Remaining().after(states, 10)
    assert (first.head.tolist(), first.tail) == ([2, 3, 5], 6)
    second = first.after([MicroBatchState(1), MicroBatchState(0)], 10)
    assert (second.head.tolist(), second.tail) == ([3, 5], 6)
    assert Remaining().after(states, 4).head.tolist() == [2, 3]


def length_of(ref: ExampleRef) -> Length:
    """Lengths of 5 to 44 tokens that depend on the example alone."""
    return Length(5 + (ref.shard * 7919 + ref.index * 104729) % 40, 1, 1)


def counted(size: int) -> MakeRows:
    return lambda stream, state: counted_rows(stream, state, size)


def filled(tokens: int, look_ahead: int = 8) -> MakeRows:
    return lambda stream, state: filled_rows(stream, state, PackingConfig(tokens, look_ahead), length_of)


def similar(size: int, ahead: int = 3) -> MakeRows:
    return lambda stream, state: similar_rows(stream, state, size, ahead, length_of, 0)


KINDS = [("counted", counted(3)), ("filled", filled(60)), ("similar", similar(3))]


def steps(
    sequence: GlobalSequence,
    progress: Progress,
    make_rows: MakeRows,
    kind: str,
    ranks: int,
    micro_batches: int,
) -> Iterator[tuple[Step, Progress]]:
    """What all ranks read together, step by step, and the progress after it."""
    progress = progress.divided(StepLayout(micro_batches, kind), sequence.length)
    readers = [rank_rows(sequence, progress, make_rows, rank=rank, ranks=ranks) for rank in range(ranks)]
    states = progress.states_of(0, 1)
    while True:
        rows: list[MicroBatchPlan] = [MicroBatchPlan((), state) for state in states]
        for rank, reader in enumerate(readers):
            for micro_batch, row in zip(
                range(rank, micro_batches, ranks), islice(reader, micro_batches // ranks), strict=False
            ):
                rows[micro_batch], states[micro_batch] = row, row.after
        if not any(row.refs for row in rows):
            return
        progress = progress.advanced(states)
        yield [row.refs for row in rows], progress


@pytest.mark.parametrize(("kind", "make_rows"), KINDS)
@settings(max_examples=40)
@given(counts=COUNTS, lanes=st.integers(1, 3), micro_batches=st.sampled_from([1, 2, 4, 8]))
def test_any_number_of_ranks_reads_the_same_steps(
    kind: str, make_rows: MakeRows, counts: list[int], lanes: int, micro_batches: int
) -> None:
    lanes = min(lanes, sum(counts))
    runs = []
    for ranks in (ranks for ranks in (1, 2, 4, 8) if micro_batches % ranks == 0):
        sequence = sequence_of(counts, lanes=lanes)
        runs.append([step for step, _ in steps(sequence, Progress(), make_rows, kind, ranks, micro_batches)])
    assert all(run == runs[0] for run in runs)
    read = Counter((ref.source, ref.shard, ref.index) for step in runs[0] for row in step for ref in row)
    assert read == everything(counts)


@pytest.mark.parametrize(("kind", "make_rows"), KINDS)
@settings(max_examples=40)
@given(
    counts=COUNTS,
    micro_batches=st.sampled_from([1, 2, 4]),
    stop=st.integers(0, 12),
    ranks=st.sampled_from([1, 2, 4]),
)
def test_going_on_reads_what_a_run_that_never_stopped_reads(
    kind: str, make_rows: MakeRows, counts: list[int], micro_batches: int, stop: int, ranks: int
) -> None:
    ranks = min(ranks, micro_batches)
    straight = list(steps(sequence_of(counts), Progress(), make_rows, kind, 1, micro_batches))
    stop = min(stop, len(straight))
    progress = straight[stop - 1][1] if stop else Progress()
    resumed = steps(sequence_of(counts), progress, make_rows, kind, ranks, micro_batches)
    assert [step for step, _ in resumed] == [step for step, _ in straight[stop:]]


@settings(max_examples=40)
@given(
    counts=COUNTS,
    changes=st.lists(st.tuples(st.sampled_from(range(3)), st.integers(1, 6), st.integers(0, 4)), max_size=4),
)
def test_changing_ranks_and_rows_on_the_way_repeats_and_loses_nothing(
    counts: list[int], changes: list[tuple[int, int, int]]
) -> None:
    sequence, progress, read = sequence_of(counts), Progress(), []
    for which, micro_batches, taken in [*changes, (0, 2, 10_000)]:
        kind, make_rows = KINDS[which]
        divided = progress.divided(StepLayout(micro_batches, f"{kind} anew"), sequence.length)
        assert sequence.length is not None
        assert divided.remaining.length(sequence.length) == sum(counts) - len(read)  # not one index more
        for step, after in islice(steps(sequence, progress, make_rows, kind, 1, micro_batches), taken):
            read += [(ref.source, ref.shard, ref.index) for row in step for ref in row]
            progress = after
    assert Counter(read) == everything(counts)


@settings(max_examples=40)
@given(counts=COUNTS, micro_batches=st.integers(1, 5), size=st.integers(1, 4), taken=st.integers(0, 5))
def test_the_steps_of_an_epoch_are_known_before_it_is_read(
    counts: list[int], micro_batches: int, size: int, taken: int
) -> None:
    sequence = sequence_of(counts)
    layout = StepLayout(micro_batches, "counted")
    run = list(steps(sequence, Progress(), counted(size), "counted", 1, micro_batches))
    assert steps_left(sequence, Progress().divided(layout, sequence.length), size, drop=False) == len(run)
    full = [step for step, _ in run if sum(map(len, step)) == micro_batches * size]
    assert steps_left(sequence, Progress().divided(layout, sequence.length), size, drop=True) == len(full)
    taken = min(taken, len(run))
    if taken:
        assert steps_left(sequence, run[taken - 1][1], size, drop=False) == len(run) - taken


def test_rows_of_similar_length_save_padding() -> None:
    def padded(make_rows: MakeRows) -> float:
        rows = [row for step, _ in steps(sequence_of([256]), Progress(), make_rows, "", 1, 1) for row in step]
        lengths = [[length_of(ref).tokens for ref in row] for row in rows]
        return sum(len(row) * max(row) for row in lengths) / sum(map(sum, lengths))

    assert padded(similar(16, 16)) < 1.1
    assert padded(counted(16)) > 1.5


def test_rows_of_similar_length_are_so_in_all_micro_batches_of_a_step() -> None:
    def waits(make_rows: MakeRows) -> float:
        """Tokens of the longest row of a step over their mean."""
        run = [
            [len(row) * max(length_of(ref).tokens for ref in row) for row in step]
            for step, _ in steps(sequence_of([512]), Progress(), make_rows, "", 2, 8)
        ]
        return sum(map(max, run)) / sum(sum(step) / len(step) for step in run)

    assert waits(similar(4, 16)) < 1.15
    assert waits(counted(4)) > 1.2


def test_a_row_refuses_what_fits_none_and_says_why() -> None:
    stream = Substream(sequence_of([6]), 0, Progress().remaining, 0, 1)
    rows = list(
        filled_rows(
            stream,
            MicroBatchState(),
            PackingConfig(100),
            lambda ref: Length(200 if ref.index == 2 else 30, 1, 1),
        )
    )
    refused = [refusal for row in rows for refusal in row.refused]
    assert [refusal.ref.index for refusal in refused] == [2]
    assert "200 tokens, more than the 100 of data.packing.length" in refused[0].reason
    assert sorted(ref.index for row in rows for ref in row.refs) == [0, 1, 3, 4, 5]


def test_state_stays_small() -> None:
    sequence = sequence_of([5000] * 4, window=1000)
    run = steps(sequence, Progress(), filled(60, look_ahead=128), "filled", 1, 8)
    sizes = [sum(len(state.waiting) for state in after.states) for _, after in islice(run, 500)]
    assert max(sizes) <= 8 * 128
    progress = list(islice(steps(sequence, Progress(), filled(60), "filled", 1, 8), 600))[-1][1]
    assert len(progress.divided(StepLayout(6, "filled"), sequence.length).remaining.head) <= 8 * (128 + 100)


# ------------------------------------------------------------------ at scale


@pytest.mark.slow
def test_a_cluster_of_1024_ranks_with_8_workers_over_100000_shards() -> None:
    """Planned without processes: memory of a rank, every example once, also resumed on 768 ranks."""
    shards, per_shard, workers, lanes = 100_000, 100, 8, 1024 * 3
    counts = np.full(shards, per_shard)
    tracemalloc.start()
    order = SourceOrder(counts, Shuffle(7, True, 10_000), lanes=lanes)
    sequence = GlobalSequence([order], [shards * per_shard], 7)
    whole = Progress().divided(StepLayout(1024, "8 examples"), sequence.length)
    rows = list(rank_rows(sequence, whole, counted(8), rank=5, ranks=1024))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    assert len(rows) == steps_left(sequence, whole, 8, drop=False) == -(-shards * per_shard // (1024 * 8))
    assert len({ref.shard for row in rows for ref in row.refs}) < 4 * shards // 1024  # shards of its own

    seen = np.zeros(shards * per_shard, dtype=np.uint8)

    def read(first: int, behind: int, ranks: int, batch: int) -> None:
        """What every worker of every rank reads: the batches w, w + workers, ... of its rank."""
        indices = np.arange(first, behind)
        batch_of_rank = (indices - first) // (ranks * batch)
        reader = (indices - first) % ranks * workers + batch_of_rank % workers
        assert len(np.unique(reader)) == ranks * workers
        refs = sequence.find(0, indices)
        np.add.at(seen, (refs.shards * per_shard + refs.indices)[refs.present], 1)

    half = 1024 * 8 * 610
    read(0, half, 1024, 8)
    progress = Progress(
        states=tuple(MicroBatchState(610 * 8) for _ in range(1024)), layout=StepLayout(1024, "8")
    )
    remaining = progress.divided(StepLayout(768, "8"), sequence.length).remaining
    assert remaining.tail == half
    assert not len(remaining.head)
    assert sequence.length is not None
    read(remaining.tail, sequence.length, 768, 8)
    assert (seen == 1).all()
