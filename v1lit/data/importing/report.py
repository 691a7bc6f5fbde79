"""What an import did."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from v1lit.data.reasons import in_words


@dataclass(frozen=True)
class ImportReport:
    """What an import did."""

    accepted: int
    """Number of examples."""
    rejected: int
    """Number of rows."""
    shards: int
    """Number of files."""
    already_done: bool
    """True if everything was there before and nothing was done."""
    folder: Path
    """Where the shards are."""
    splits: dict[str, ImportReport] = field(default_factory=dict)
    """A report for each split, where the source has splits; their folders lie inside of `folder`."""
    ignored: tuple[str, ...] = ()
    """Files of the source that belong to no split and were left out."""
    reasons: tuple[tuple[str, int], ...] = ()
    """The most frequent reasons for rejecting rows, each with the number of such rows."""
    doubts: tuple[str, ...] = ()
    """Why the boxes look like another format than the declared one."""

    @property
    def failed(self) -> str | None:
        """Where nothing came of the rows, of all or of one split, and why; None if it is all right."""
        for part in (*self.splits.values(), self):
            if not part.accepted and (part.rejected or part is self):
                doubts = "".join(f"; {doubt}" for doubt in part.doubts)
                return (
                    f"no row came to {part.folder}: {in_words(part.reasons) or 'there are no rows'}{doubts}"
                )
        return None


def total(reports: dict[str | None, ImportReport], out: Path, ignored: tuple[str, ...] = ()) -> ImportReport:
    """The report of all splits together."""
    parts = list(reports.values())
    return ImportReport(
        accepted=sum(part.accepted for part in parts),
        rejected=sum(part.rejected for part in parts),
        shards=sum(part.shards for part in parts),
        already_done=all(part.already_done for part in parts),
        folder=out,
        splits={name: report for name, report in reports.items() if name is not None},
        ignored=ignored,
        reasons=tuple(reason for part in parts for reason in part.reasons),
        doubts=tuple(doubt for part in parts for doubt in part.doubts),
    )
