"""Statistics of the examples of some sources: counted by `survey`, and drawn as a page."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from v1lit.data.errors import ShardError
from v1lit.data.images import decode_image
from v1lit.data.shards import Shard
from v1lit.data.tools.check import CHECK_CACHE_BYTES, check
from v1lit.data.tools.content import fetch
from v1lit.data.tools.counts import Extremes, Place, printable
from v1lit.data.tools.find import ShardFile
from v1lit.data.tools.sheets import joined
from v1lit.data.tools.show import PALETTE, with_regions
from v1lit.data.tools.stats_page import Gallery, Picture, render_page
from v1lit.data.tools.survey import Survey, Surveyor
from v1lit.files import write_atomically
from v1lit.paths import expand_path

if TYPE_CHECKING:
    from v1lit.data.example import Example
    from v1lit.data.tools.cost import Rules

THUMBNAIL_SIDE = 160
"""Longer side of a thumbnail, in pixels."""
LONGEST_TEXT = 80
"""Characters below a thumbnail."""


@dataclass(frozen=True)
class Stats:
    """What some sources hold."""

    surveys: Mapping[str, Survey]
    """By location."""
    problems: int
    """Things that are wrong with the shards or refused by the rules; `v1lit data check` names them."""
    rules: Mapping[str, Rules]

    @property
    def whole(self) -> Survey:
        """All sources as one."""
        return joined(self.surveys)


def count_stats(
    locations: Sequence[str],
    rules: Mapping[str, Rules] | None = None,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> Stats:
    """Count what the examples of some locations are, in parallel; no image is decoded.

    Args:
        locations: folders, tar files or patterns, local or URLs.
        rules: those of a recipe by location, for lengths in tokens; None for none.
        workers: processes, each with one shard at a time; None for one per core.
        progress: show a progress bar on stderr.

    Raises ValueError for a location without shards, or no workers, and MapError as a map of the rules.
    """
    rules = {} if rules is None else rules
    surveyor = Surveyor(rules)
    report = check(locations, workers=workers, decode=False, progress=progress, surveyor=surveyor)
    return Stats(report.surveys, report.kinds.total(), rules)


def write_page(stats: Stats, out: str | os.PathLike[str], title: str) -> Path:
    """Draw statistics as one HTML file that needs no other; returns its path.

    The examples at the extremes are read once more for their pictures, remote shards fetched again.
    """
    out = Path(expand_path(out))
    with tempfile.TemporaryDirectory(prefix="v1lit-stats-") as folder:
        galleries = list(_galleries(stats, (folder, CHECK_CACHE_BYTES)))
    page = render_page(title, stats.surveys, stats.whole, galleries)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page)
    return out


def _galleries(stats: Stats, cache: tuple[str, int]) -> Iterator[Gallery]:
    whole = stats.whole
    ends: list[tuple[str, str, Extremes, str]] = [
        ("fewest tokens", "most tokens", whole.extreme_lengths, "{:,.0f} tokens"),
        ("fewest image tokens", "most image tokens", whole.extreme_image_tokens, "{:,.0f} image tokens"),
        ("fewest regions", "most regions", whole.extreme_regions, "{:,.0f} regions"),
        ("smallest regions", "largest regions", whole.extreme_areas, "{:.3%} of the image"),
    ]
    for smallest, largest, extremes, words in ends:
        for title, places in ((smallest, extremes.smallest), (largest, extremes.largest)):
            pictures = [_picture(place, words.format(place.value), cache) for place in places]
            yield Gallery(title, pictures)


def _picture(place: Place, value: str, cache: tuple[str, int]) -> Picture:
    """An example as the shard holds it, before any map; without an image where it has none."""
    text = f"{printable(place.id, LONGEST_TEXT)}, number {place.index} of {os.path.basename(place.shard)}"
    try:
        with Shard(fetch(ShardFile(place.shard), cache), name=place.shard) as shard:
            example = shard.example(place.index)
            return Picture(value, text, _thumbnail(example, place.region))
    except ShardError as error:
        return Picture(value, f"{text}: {printable(error.reason, LONGEST_TEXT)}")
    except ValueError as error:  # an image that cannot be decoded
        return Picture(value, f"{text}: {printable(str(error), LONGEST_TEXT)}")


def _thumbnail(example: Example, name: str) -> Image.Image | None:
    """The image of a region with that region, or the first image with all of its own."""
    if not example.images:
        return None
    regions = {name: example.regions[name]} if name in example.regions else dict(example.regions)
    index = regions[name].image if name in regions else 0
    colors = {one: PALETTE[k % len(PALETTE)] for k, one in enumerate(regions)}
    image = decode_image(example.images[index])
    return with_regions(image, index, regions, colors, THUMBNAIL_SIDE)
