"""The validation loader: all examples, in their order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lightning import Trainer

from v1lit.data.encode.batch import Batch
from v1lit.data.example import ExampleRef
from v1lit.data.lengths.length import Length
from v1lit.data.loading.failures import Failure, lost_shards, run_of_failures, skipped_of
from v1lit.data.loading.ranks import Ranks
from v1lit.data.loading.reading import MicroBatch, MicroBatchReader
from v1lit.data.loading.sequence import OpenedSequence
from v1lit.data.loading.skips import SkipList
from v1lit.data.loading.workers import Workers
from v1lit.data.sampling.epoch import Progress, StepLayout, rank_rows
from v1lit.data.sampling.grouping import Grouping


class ValLoader:
    """All validation examples in order, split over the ranks, which have equally many batches."""

    def __init__(
        self,
        opened: OpenedSequence,
        reader: MicroBatchReader,
        size: int,
        skips: SkipList,
        trainer: Trainer | None,
        workers: int,
    ) -> None:
        self.opened, self.reader, self.size, self.skips = opened, reader, size, skips
        self.trainer, self.workers = trainer, workers

    @property
    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def __len__(self) -> int:
        """Batches on every rank."""
        positions = self.opened.sequence.length
        assert positions is not None
        return -(-positions // (self.size * self._ranks[1]))

    def __iter__(self) -> Iterator[Batch]:
        rank, ranks = self._ranks
        progress = Progress(layout=StepLayout(ranks, f"{self.size} examples"))
        make_rows = Grouping(self.size).make_rows(_unmeasured)
        rows = rank_rows(self.opened.sequence, progress, make_rows, rank=rank, ranks=ranks)
        micro_batches = (one for _, one in Workers(self.workers).run(self.reader, rows))
        return val_batches(micro_batches, self.skips, ranks, lost_shards(self.opened.lost, rank))


def val_batches(
    micro_batches: Iterable[MicroBatch], skips: SkipList, ranks: int, lost: Sequence[Failure] = ()
) -> Iterator[Batch]:
    """The batches of validation, of which all ranks have equally many; what could not be used is noted."""
    everyone, in_a_row = Ranks.of(ranks), 0

    def note(failures: Sequence[Failure | None], number: int, left_out: int = 0) -> None:
        """Note what became of a batch on all ranks."""
        nonlocal in_a_row
        in_a_row, longest = run_of_failures(failures, in_a_row)
        own = len(failures) - left_out, skipped_of(failures, "val", 0, number), longest, left_out
        gathered = everyone.gather(own)
        skips.note(
            sum(read for read, _, _, _ in gathered),
            [one for _, skipped, _, _ in gathered for one in skipped],
            max(longest for _, _, longest, _ in gathered),
        )
        skips.note_left_out(sum(left_out for *_, left_out in gathered))

    note(lost, 0)
    for number, one in enumerate(micro_batches):
        note(one.failures, number, one.left_out)  # at once, because validation may be cut short
        yield one.batch


def _unmeasured(ref: ExampleRef) -> Length:
    raise AssertionError("counted rows measure nothing")
