"""Answers to many rows: batched by length, resumable, shared by several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from v1lit.errors import check_least, one_line
from v1lit.inference.answers_file import AnswersFile
from v1lit.inference.predictor import Predictor
from v1lit.inference.prompt import Prompt, longest_sequence, make_prompt
from v1lit.inference.rows import Row, Rows, length_of
from v1lit.processes import progress_bar
from v1lit.steering import Steering

WINDOW = 64
"""Batches of rows that are sorted by length together, so that those of a batch need little padding."""
UNTOLD = ("seconds",)
"""Of a prediction, what differs from run to run and does not come into the file."""


@dataclass(frozen=True)
class BulkOptions:
    """How rows are answered."""

    batch_size: int = 8
    """Rows that are answered together."""
    max_new_tokens: int = 512
    """Tokens of an answer at most."""
    seed: int = 0
    """Of samples: a batch draws the same in every run, whoever answers it."""
    generate: Mapping[str, Any] = field(default_factory=dict)
    """Further options of `Predictor.batch`, as plain data."""
    steer: Steering | None = None
    """Where and when the model may look."""

    GROUP: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_least(self, 1, "batch_size", "max_new_tokens")


class Share(NamedTuple):
    """Which of several processes this is."""

    rank: int = 0
    of: int = 1

    @classmethod
    def from_environment(cls) -> Share:
        """As torchrun and SLURM's `srun` with its like say by RANK and WORLD_SIZE; one process without."""
        share = cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
        if not 0 <= share.rank < share.of:
            raise ValueError(f"RANK is {share.rank}, but WORLD_SIZE {share.of}: ranks count from 0")
        return share


@dataclass(frozen=True)
class BulkReport:
    """What came of it."""

    rows: int
    complete: bool
    """Whether all rows are answered; if not, other processes have rows left."""
    failed: Sequence[Mapping[str, Any]]
    """Rows without an answer, with `row`, `id` and `error`; if incomplete those of this process."""
    answered: int
    """Rows that were answered just now, by this process."""


def answer_rows(
    predictor: Predictor,
    rows: Rows,
    out: Path,
    options: BulkOptions,
    *,
    made_with: Mapping[str, Any] | None = None,
    share: Share | None = None,
    retry_failed: bool = False,
    progress: bool = True,
) -> BulkReport:
    """Answer all rows into the file `out`, one JSON object per line, in order.

    Each line has the `row`, its `id`, and what `Prediction.to_json` has, or an `error`. Whoever is killed
    resumes where it was: which rows are answered together depends on the rows and `options` alone, so results
    are the same. Rows that cannot be asked are listed, and hold up no others.

    Args:
        predictor: to ask.
        rows: what to ask.
        out: file to write, by renaming.
        options: how.
        made_with: what else answers depend on, as plain data; compared when the work is resumed.
        share: which of several processes this is.
        retry_failed: ask the rows again that could not be asked in an earlier run.
        progress: show a bar with the time left, on the first process.

    Raises ValueError for a file that was begun with other settings, and for options of `generate`.
    """
    share = share or Share()
    settings = {"rows_content": rows.content, **_plain(options), **(made_with or {})}
    file = AnswersFile(out, len(rows), settings)
    if retry_failed:
        if share.of > 1:
            raise ValueError("failed rows are asked again by one process; start it without torchrun")
        file.forget_failed()
    if file.complete:
        file.clean()
        return BulkReport(len(rows), True, list(file.failed()), 0)
    done = set(file.done())
    file.begin(share.rank)
    failed: list[Mapping[str, Any]] = []
    answered = 0
    with progress_bar(
        "answering", _rows_of(share, len(rows), options.batch_size), progress and not share.rank, "rows"
    ) as advance:
        for batch in _batches(predictor, rows, options.batch_size, share, done):
            missing = [index for index in batch.indices if index not in done]
            if missing:
                lines = [line for line in _ask(predictor, rows, batch, options) if line["row"] in missing]
                file.add(lines)
                failed += [line for line in lines if "error" in line]
                answered += len(lines)
            advance(len(batch.indices))
    complete = file.finish()
    return BulkReport(len(rows), complete, list(file.failed()) if complete else failed, answered)


def _plain(options: BulkOptions) -> dict[str, Any]:
    return {
        "batch_size": options.batch_size,
        "max_new_tokens": options.max_new_tokens,
        "seed": options.seed,
        **options.generate,
        **({} if options.steer is None else {"steer": options.steer.to_json()}),
    }


class _Batch(NamedTuple):
    number: int
    indices: list[int]


def _batches(predictor: Predictor, rows: Rows, size: int, share: Share, done: set[int]) -> Iterator[_Batch]:
    """This process's batches: every n-th of those that windows of rows, each sorted by length, make."""
    longest = longest_sequence(predictor.model)
    number = 0
    for start in range(0, len(rows), size * WINDOW):
        window = range(start, min(start + size * WINDOW, len(rows)))
        lengths = dict.fromkeys(window, 0)
        if not done.issuperset(window):  # else it does not matter which rows are whose
            lengths = {row: _length(predictor, rows, row, longest) for row in window}
        order = sorted(window, key=lengths.__getitem__)
        for at in range(0, len(order), size):
            if number % share.of == share.rank:
                yield _Batch(number, order[at : at + size])
            number += 1


def _rows_of(share: Share, rows: int, size: int) -> int:
    """Rows of this process's batches; a last batch of a window may be smaller."""
    sizes = [
        min(size, stop - at)
        for start in range(0, rows, size * WINDOW)
        for stop in [min(start + size * WINDOW, rows)]
        for at in range(start, stop, size)
    ]
    return sum(sizes[share.rank :: share.of])


def _length(predictor: Predictor, rows: Rows, index: int, longest: int) -> int:
    """Tokens of a row's prompt; 0 of one that cannot be asked, which is told when its turn comes."""
    try:
        return length_of(rows.read(index), predictor.processor, longest)
    except (ValueError, OSError):
        return 0


def _ask(predictor: Predictor, rows: Rows, batch: _Batch, options: BulkOptions) -> list[dict[str, Any]]:
    """A line for every row of a batch."""
    asked: list[tuple[int, Row, Prompt]] = []
    lines: list[dict[str, Any]] = []
    longest = longest_sequence(predictor.model)
    for index in batch.indices:
        row_id = str(index)
        try:
            row = rows.read(index)
            row_id = row.id
            prompt = make_prompt(row.id, row.pictures, row.question, predictor.processor, longest)
            asked.append((index, row, prompt))
        except (ValueError, OSError) as error:
            lines.append({"row": index, "id": row_id, "error": one_line(error)})
    if asked:
        prompts = [prompt for _, _, prompt in asked]
        with torch.random.fork_rng():
            torch.manual_seed(options.seed * 1_000_003 + batch.number)
            made = predictor.answer(prompts, options.max_new_tokens, steer=options.steer, **options.generate)
        for (index, row, _), prediction in zip(asked, made, strict=True):
            told = {name: value for name, value in prediction.to_json().items() if name not in UNTOLD}
            lines.append({"row": index, "id": row.id, **told, "expected": row.expected})
    return lines
