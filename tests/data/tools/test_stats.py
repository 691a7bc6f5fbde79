"""`stats` counts every example once, whatever the processes, and its page is one safe file."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.faulty_server import FaultyServer
from helpers.html_page import Page
from helpers.pictures import encoded
from helpers.shard_cases import make
from PIL import Image

from v1lit.data.example import Example, Message
from v1lit.data.images import read_header
from v1lit.data.shards import ShardWriter, write_index
from v1lit.data.tools.counts import Counts, Place
from v1lit.data.tools.sheets import value_sheet
from v1lit.data.tools.stats import THUMBNAIL_SIDE, Stats, count_stats, write_page
from v1lit.data.tools.stats_page import Gallery, area_labels, binned, render_page
from v1lit.data.tools.survey import Survey
from v1lit.grounding.region import Region

EVIL = '</td><script>alert("1")</script><img src=http://evil/x.png onerror=alert(2)>'


def example(id: str, question: str = "Where?", boxes: int = 1, source: str = "") -> Example:
    """A picture of 400 x 200 pixels; its k-th region covers k hundredths of it."""
    regions = {f"<|region_{k}|>": Region.from_box((0, 0, 40, 20 * k)) for k in range(1, boxes + 1)}
    return Example(
        id=id,
        images=(read_header(encoded((400, 200), "white")),),
        messages=(Message("user", f"<image>{question}"), Message("assistant", " ".join(["Here:", *regions]))),
        regions=regions,
        source=source,
    )


def written(folder: Path, *examples: Example) -> str:
    with ShardWriter(folder, max_examples=2) as writer:
        for each in examples:
            writer.write(each)
    write_index(folder, writer.shards)
    return str(folder)


FIVE = (
    example("a", "How many?", boxes=0, source="x/one"),
    example("b", "How many now?", boxes=1, source="x/one"),
    example("c", "What is it?", boxes=2, source="x/two"),
    example("d", "Is it?", boxes=3, source="x/two"),
    make("e", images=0),
)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return written(tmp_path / "shards", *FIVE)


def pictures(page: Page) -> list[Image.Image]:
    sources = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]


def page_of(stats: Stats, out: Path) -> Page:
    return Page(write_page(stats, out, "the title").read_text(encoding="utf-8"))


# --- counting ---


@pytest.mark.parametrize("workers", [1, 2])
def test_every_example_is_counted_once(folder: str, workers: int) -> None:
    stats = count_stats([folder], workers=workers)
    survey = stats.whole
    assert (survey.examples, survey.turns, survey.images, survey.regions, stats.problems) == (5, 5, 4, 6, 0)
    assert survey.areas == {100: 3, 200: 2, 300: 1}, "in ten-thousandths: hundredths times a hundred"
    assert survey.questions.counts == {"how many": 2, "what is": 1, "is it": 1, "where": 1}
    assert survey.sources.counts == {"x/one": 2, "x/two": 2, "(none)": 1}
    assert survey.extreme_regions.largest[0].id == "d"
    assert stats.surveys[folder] == survey


def test_what_cannot_be_read_is_a_problem_and_not_counted(folder: str) -> None:
    shard = Path(folder) / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"How many?", b"How many!"))
    stats = count_stats([folder], workers=1)
    assert stats.problems > 0
    assert stats.whole.examples <= 5


def test_values_stand_in_a_table_with_their_ends(folder: str) -> None:
    rows = {row[0]: list(row[1:]) for row in value_sheet(count_stats([folder], workers=1).whole).rows}
    assert rows == {
        "images of an example": ["0.8", "0", "1", "1", "1", "1"],
        "regions of an example": ["1.2", "0", "1", "3", "3", "3"],
        "area of a region": ["1.67%", "1.00%", "1.00%", "3.00%", "3.00%", "3.00%"],
    }


def test_counting_needs_no_torch() -> None:
    code = "import sys, v1lit.data.tools.stats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the page ---


def test_the_page_has_histograms_and_the_examples_at_the_ends(folder: str, tmp_path: Path) -> None:
    page = page_of(count_stats([folder], workers=1), tmp_path / "deep" / "page.html")
    for words in ("the title", "regions of an example", "area of a region", "how many", "x/two"):
        assert words in page.text
    assert "most regions" in page.text
    assert "3.000% of the image" in page.text
    assert "d, number 1 of shard-000001.tar" in page.text
    assert pictures(page)
    assert {max(image.size) for image in pictures(page)} == {THUMBNAIL_SIDE}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["page.html"]


def test_bars_are_as_long_as_what_they_count(folder: str, tmp_path: Path) -> None:
    page = page_of(count_stats([folder], workers=1), tmp_path / "page.html")
    widths = [attributes["style"] for tag, attributes in page.elements if tag == "i"]
    found = [float(width.removeprefix("width:").removesuffix("%")) for width in widths]
    assert found[:6] == [25, 100, 100, 50, 50, 50], "images 0 and 1; regions 0 to 3"
    assert found[6:14] == [0, 0, 0, 0, 100, 20, 0, 0], "areas: five from 1 hundredth on, one from 3 on"
    assert found[14:] == [100, 50, 50, 50, 100, 100, 50], "four questions, three sources"


def test_the_page_loads_nothing_and_runs_nothing(folder: str, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    page = page_of(count_stats([folder], workers=1), out)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    policies = [
        attributes for tag, attributes in page.elements if tag == "meta" and "http-equiv" in attributes
    ]
    assert policies[0]["content"].startswith("default-src 'none'")
    assert "http:" not in (text := out.read_text(encoding="utf-8"))
    assert "https:" not in text
    assert "url(" not in text


def test_somebodys_words_stay_words(tmp_path: Path) -> None:
    nasty = [
        example(EVIL, EVIL, source=EVIL),
        example("x\x1b[31m\u202e", "<b>Bold</b> <i>words</i>", source="<svg onload=alert(3)>"),
    ]
    folder = written(tmp_path / "shards", *nasty)
    stats = count_stats([folder], workers=1)
    title = f"{EVIL}: 2 examples"
    text = write_page(stats, tmp_path / "page.html", title).read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "svg", "b "} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(image.format == "JPEG" for image in pictures(page))
    assert title in page.text
    assert "<svg onload=alert(3)>" in page.text
    assert EVIL[:59] in page.text, "its beginning, as a source"
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "td script" in page.text, "the first two words of the question"


def test_an_example_that_is_gone_or_has_no_image_keeps_its_place(folder: str, tmp_path: Path) -> None:
    stats = count_stats([folder], workers=1)
    shard = Path(folder) / "shard-000001.tar"
    shard.unlink()
    page = page_of(stats, tmp_path / "page.html")
    assert "d, number 1 of shard-000001.tar: there is no such file" in page.text
    assert "e, number 0 of shard-000002.tar" in page.texts


def test_the_pictures_of_remote_shards_are_fetched(folder: str, tmp_path: Path) -> None:
    with FaultyServer() as server:
        for path in Path(folder).iterdir():
            server.files[f"shards/{path.name}"] = path.read_bytes()
        stats = count_stats([server.url("shards")], workers=1)
        page = page_of(stats, tmp_path / "page.html")
    assert stats.whole.examples == 5
    other = page_of(count_stats([folder], workers=1), tmp_path / "other.html")
    assert len(pictures(page)) == len(pictures(other))


def test_the_region_at_an_end_is_drawn_and_no_other(tmp_path: Path) -> None:
    folder = written(tmp_path / "shards", example("d", boxes=3))
    stats = count_stats([folder], workers=1)
    place = stats.whole.extreme_areas.smallest[0]
    assert (place.region, place.value) == ("<|region_1|>", pytest.approx(0.01))
    # Three regions from the smallest on, then three from the largest on.
    images = pictures(page_of(stats, tmp_path / "p.html"))[-6:]
    small, large = (np.asarray(images[number].convert("RGB")) for number in (0, 3))
    # At the size of the thumbnail the third region reaches down to 24 pixels, the first to 8.
    assert (small[22:26, :16] > 240).all()
    assert (large[22:26, :16] < 240).any()


# --- its parts ---


def test_bins_say_both_their_ends() -> None:
    assert binned(Counts({0: 1, 2: 3})) == [("0", 1), ("1", 0), ("2", 3)]
    assert binned(Counts({0: 1, 47: 2}))[-1] == ("46-47", 2)
    assert len(binned(Counts({0: 1, 47: 2}))) == 24
    assert binned(Counts({1: 1, 30_000: 1}))[0] == ("0-1,999", 1)


def test_areas_are_labelled_in_hundredths() -> None:
    labels = area_labels()
    assert labels[:2] == ["0-0.03 %", "0.03-0.1 %"]
    assert labels[-1] == "30-100 %"
    assert len(labels) == 8


def test_a_page_without_examples_has_no_histograms_of_lengths() -> None:
    page = render_page("empty", {"here": Survey()}, Survey(), [Gallery("most tokens")]).decode()
    assert "tokens of an example" not in page
    assert "most tokens" not in page
    assert not re.search("NaN|nan", page)
    assert Place(1, "s", 0, "x").region == ""
