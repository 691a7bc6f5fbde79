"""The page of `stats`: tables, histograms and small pictures as one HTML file; all text in it is escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from PIL import Image

from v1lit.data.tools.counts import Counts, Names
from v1lit.data.tools.sheets import Sheet, name_sheet, number, share, source_sheet, value_sheet
from v1lit.data.tools.survey import AREA_UNITS, Survey

MOST_BINS = 24
"""Bins of a histogram."""
AREA_EDGES = (0, 3, 10, 30, 100, 300, 1_000, 3_000, AREA_UNITS + 1)
"""Of areas, in parts of their image of which `AREA_UNITS` are the whole."""
QUALITY = 80
"""Of thumbnails, as JPEG."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for the page: nothing, and no scripts."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c22; background: #f4f4f6;
  margin: 2em auto; max-width: 1180px; padding: 0 1em; }
h1 { font-size: 1.2em; }
h2 { font-size: 1em; margin: 0 0 .5em; }
section { background: #fff; border: 1px solid #dcdce2; border-radius: 8px; padding: 1em; margin: 1em 0;
  overflow-x: auto; }
table { border-collapse: collapse; font-size: .9em; }
th, td { padding: .1em .7em; text-align: right; white-space: nowrap; }
th { font-weight: 600; }
tr > :first-child { text-align: left; }
.bars { display: inline-block; vertical-align: top; margin: 0 2em 1em 0; }
.bar { display: block; width: 220px; }
.bar i { display: block; height: .9em; min-width: 1px; background: #0057d9; }
.pictures { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; width: 168px; font-size: .8em; overflow-wrap: anywhere; }
figure img { display: block; max-width: 100%; border: 1px solid #dcdce2; }
.sub { color: #6b6b76; }
"""


@dataclass
class Picture:
    """An example at an extreme: what is said of it, and its image, where it has one that can be read."""

    value: str
    text: str
    image: Image.Image | None = None


@dataclass
class Gallery:
    """Examples at one extreme."""

    title: str
    pictures: list[Picture] = field(default_factory=list)


def render_page(
    title: str, surveys: Mapping[str, Survey], whole: Survey, galleries: Sequence[Gallery]
) -> bytes:
    """A page that needs no other file, of the surveys by source, `whole` being all of them."""
    sections = [_table(source_sheet(surveys)), _table(value_sheet(whole)), *_histograms(whole)]
    sections += [_gallery(gallery) for gallery in galleries if gallery.pictures]
    body = "\n".join(f"<section>{section}</section>" for section in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    ).encode()


def _table(sheet: Sheet) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in sheet.columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in sheet.rows
    )
    return f"<h2>{html.escape(sheet.title)}</h2><table><tr>{head}</tr>{rows}</table>"


def _histograms(survey: Survey) -> Iterator[str]:
    """Sections of histograms; none of what was not counted."""
    numbers = {
        "tokens of an example": survey.lengths,
        "image tokens of an example": survey.image_tokens,
        "images of an example": survey.images_each,
        "regions of an example": survey.regions_each,
    }
    blocks = [_bars(title, binned(counts)) for title, counts in numbers.items() if counts]
    if survey.areas:
        bins = zip(area_labels(), survey.areas.in_bins(AREA_EDGES), strict=True)
        blocks.append(_bars("area of a region, of its image", list(bins)))
    yield "".join(blocks)
    yield _named("questions begin with", survey.questions) + _named("sources of examples", survey.sources)


def binned(counts: Counts) -> list[tuple[str, int]]:
    """Labels of bins of equal width, `from-to` with both ends included, and what is in them."""
    edges = counts.even_edges(MOST_BINS)
    ends = [(low, high - 1) for low, high in pairwise(edges)]
    labels = [number(low) if low == high else f"{number(low)}-{number(high)}" for low, high in ends]
    return list(zip(labels, counts.in_bins(edges), strict=True))


def area_labels() -> list[str]:
    """Of the bins of areas, in hundredths of an image; the lower end is included, the upper one not."""
    ends = [f"{edge * 100 / AREA_UNITS:g}" for edge in (*AREA_EDGES[:-1], AREA_UNITS)]
    return [f"{low}-{high} %" for low, high in pairwise(ends)]


def _named(title: str, names: Names) -> str:
    sheet = name_sheet(title, "", names)
    return _bars(title, [(row[0], int(row[1].replace(",", ""))) for row in sheet.rows])


def _bars(title: str, bars: Sequence[tuple[str, int]]) -> str:
    """A histogram on its side: one bar below the other, the longest as wide as there is room."""
    longest, total = max((count for _, count in bars), default=0), sum(count for _, count in bars)
    rows = "".join(
        f'<tr><td>{html.escape(label)}</td><td><span class="bar">'
        f'<i style="width:{100 * count / max(1, longest):.1f}%"></i></span></td>'
        f"<td>{number(count)}</td><td>{share(count, total)}</td></tr>"
        for label, count in bars
    )
    return f'<div class="bars"><h2>{html.escape(title)}</h2><table>{rows}</table></div>'


def _gallery(gallery: Gallery) -> str:
    figures = "".join(map(_figure, gallery.pictures))
    return f'<h2>{html.escape(gallery.title)}</h2><div class="pictures">{figures}</div>'


def _figure(picture: Picture) -> str:
    image = ""
    if picture.image is not None:
        buffer = io.BytesIO()
        picture.image.convert("RGB").save(buffer, "JPEG", quality=QUALITY)
        data = base64.b64encode(buffer.getvalue()).decode()
        image = f'<img alt="" src="data:image/jpeg;base64,{data}">'
    value, text = html.escape(picture.value), html.escape(picture.text)
    return f'<figure>{image}<b>{value}</b><br><span class="sub" dir="auto">{text}</span></figure>'
