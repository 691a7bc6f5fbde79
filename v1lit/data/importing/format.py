"""What a foreign format is: how one of its rows becomes examples, and what it may use for that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from v1lit.data.example import Example
from v1lit.data.images import EncodedImage
from v1lit.data.importing.box_doubts import BoxTally
from v1lit.data.importing.box_format import BoxFormat
from v1lit.data.importing.images import ImageFolder
from v1lit.data.importing.rows import ARROW, JSON, LINES, PARQUET, Row
from v1lit.grounding.region import Region


@dataclass
class Reading:
    """What a format may use to read a row."""

    source: str
    """Format and file, for the `source` of examples."""
    images: ImageFolder
    boxes: BoxFormat
    """What the numbers of boxes mean."""
    row: int = 0
    """Number of the row in its file, from 0."""
    tally: BoxTally = field(default_factory=BoxTally)

    def image(self, given: object) -> EncodedImage:
        """The image that a row names or holds; see `ImageFolder.load`."""
        return self.images.load(given)

    def region(
        self, numbers: Sequence[float], images: Sequence[EncodedImage], image: int = 0, **changes: Any
    ) -> Region:
        """The region of a box or point on one of the example's images.

        Args:
            numbers: as the row has them.
            images: those of the example.
            image: number of the one that is meant.
            changes: fields of the box format that this row says by itself.

        Raises ValueError for numbers that cannot be on the image.
        """
        if not 0 <= image < len(images):
            raise ValueError(f"a box lies in image {image}, but the row has {len(images)} images")
        boxes = BoxFormat(**{**vars(self.boxes), **changes}) if changes else self.boxes
        size = images[image].size
        if isinstance(numbers, list | tuple) and len(numbers) in (2, 4) and not changes:
            self.tally.add(numbers, size, boxes)
        return boxes.region(numbers, size, image)

    def id(self, given: object) -> str:
        """An id that is unique in the file even where those of its rows are not."""
        file = Path(self.source.partition(":")[2]).stem
        return f"{given if isinstance(given, str | int) else file}#{self.row}"


@dataclass(frozen=True)
class Gathered:
    """Rows that were put together from several files, or out of one."""

    files: Mapping[str | None, Sequence[Path]]
    """Split -> the files that its rows are made of; the split is None where there are none."""
    rows: Callable[[str | None], Iterator[Row]]
    """The rows of a split, each plain JSON; the same files give the same rows."""


@dataclass(frozen=True)
class Format:
    """A foreign format: its file in `v1lit/data/formats/` makes one, and the registry names it."""

    name: str
    about: str
    """What its rows are, on one line."""
    read: Callable[[Row, Reading], Iterable[Example]]
    """The examples of a row. Raises ValueError (ExampleError too) with what is wrong with the row. A function
    of a module, because it is sent to other processes."""
    boxes: BoxFormat = field(default_factory=BoxFormat)
    """What its boxes are where an import does not say otherwise."""
    rules: int = 1
    """Raised when the rules change what becomes of a row, so that no import is resumed under other rules."""
    suffixes: tuple[str, ...] = (PARQUET, ARROW, LINES, JSON)
    """Of the files that hold rows."""
    columns: tuple[str, ...] | None = None
    """Of parquet files: those that are read; all when None."""
    required: tuple[str, ...] = ()
    """Of parquet files: those without which a file is not in the format."""
    gather: Callable[[Path], Gathered | None] | None = None
    """For rows that are spread over files: puts them together; None where a source holds plain rows."""
    options: dict[str, Any] = field(default_factory=dict)
    """Plain JSON that belongs to the rules, such as a mapping."""
