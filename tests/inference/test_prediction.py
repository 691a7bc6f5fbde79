"""What a prediction says, draws and writes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from helpers.asked import predictor
from helpers.html_page import Page
from PIL import Image, ImageChops

from v1lit.grounding.patch_map import PatchMap
from v1lit.grounding.region import Region
from v1lit.inference import page_parts
from v1lit.inference.prediction import Prediction
from v1lit.inference.reading import read_answer
from v1lit.revisit.coordinates import Coordinates
from v1lit.revisit.point_and_copy import PointAndCopy
from v1lit.revisit.strategy import Strategy
from v1lit.testing.models import noise, processor

pytestmark = pytest.mark.dependencies

TRACE = (
    '<think> detect(query="the <b>red</b> one", objects=["<obj1><region>{1}{2}</region>", '
    '"<obj2><region>{9}</region>"]) so <obj1> is left of <obj2>. detect(query="x", objects=["<obj3>"]) '
    "</think><answer> a & b </answer>"
)
MAPS = (PatchMap.grid((80, 40), 2, 4), PatchMap.grid((40, 40), 2, 2))
PICTURES = (noise((80, 40)), noise((40, 40), 1))


def read(trace: str, maps: tuple[PatchMap, ...] = MAPS, strategy: Strategy | None = None) -> Prediction:
    """The prediction of a trace in which `{7}` is the pointer to image token 7."""
    of = processor("qwen2_5_vl")
    ids = []
    for number, piece in enumerate(re.split(r"\{(\d+)\}", trace)):
        ids += [of.pointer_start + int(piece)] if number % 2 else of.encode_text(piece, special=False)
    made = read_answer([*ids, of.stop_token_id, 0, 0], None, maps, 9, of, strategy or PointAndCopy())
    return replace(made, pictures=PICTURES[: len(maps)], question="Where <i>?")


def test_looks_know_their_object_their_regions_and_their_place_in_the_text() -> None:
    made = read(TRACE)
    one, two = made.looks
    assert (one.number, one.name, one.query, one.tokens) == (1, "<obj1>", "the <b>red</b> one", (1, 2))
    assert one.regions == (Region.from_box((20, 0, 60, 20)),)
    assert (two.number, two.name, two.tokens) == (2, "<obj2>", (9,))
    assert two.regions == (Region.from_box((20, 0, 40, 20), 1),)
    assert made.text[one.start : one.stop] == "<|copy_1|><|copy_2|>"
    assert made.text[two.start : two.stop] == "<|copy_9|>"
    assert made.answer == "a & b"
    assert made.counts is not None
    assert (made.counts.prompt, made.counts.image) == (9, 12)


def test_pointers_outside_of_calls_and_words_like_pointers_are_told_apart() -> None:
    made = read(
        '{3} detect(query="q", objects=["<obj1><region><|copy_5|></region>", "<region>{3}</region>"])'
    )
    assert [(look.tokens, look.query) for look in made.looks] == [((3,), ""), ((3,), "q")]
    assert made.pointers == ((3,), (3,))
    assert len(made.trace.calls[0].objects) == 2


@pytest.mark.parametrize(
    ("strategy", "written", "box"),
    [
        (Coordinates(), "[0.25, 0.50, 0.75, 1.00]", (20, 20, 60, 40)),
        (Coordinates(format="bins", bins=100), "[25, 50, 74, 99]", (20, 20, 60, 40)),
        (Coordinates(format="pixels"), "[20, 20, 60, 40]", (20, 20, 60, 40)),
        (PointAndCopy(), "[0.25, 0.50, 0.75, 1.50]", (20, 20, 60, 40)),
    ],
)
def test_written_boxes_are_looks_in_pixels(strategy: Strategy, written: str, box: tuple[float, ...]) -> None:
    made = read(f'detect(query="q", objects=["<obj1><region>{written}</region>"])', MAPS[:1], strategy)
    (look,) = made.looks
    assert look.regions[0].box == pytest.approx(box)
    assert made.text[look.start : look.stop] == written
    assert look.tokens == look.probabilities == ()


@pytest.mark.parametrize("written", ["[0.5, 0.5, 0.5, 0.9]", "[0.9, 0.1, 0.2, 0.3]", "[2, 2, 3, 3]"])
def test_boxes_that_are_none_are_no_looks(written: str) -> None:
    trace = f'detect(query="q", objects=["<obj1><region>{written}</region>"])'
    looks = read(trace, MAPS[:1], Coordinates()).looks
    assert all(region.box[0] >= 80 for look in looks for region in look.regions)
    assert read(trace, MAPS, Coordinates()).looks == ()  # of which image it is nobody knows


def test_every_region_is_drawn_with_its_number() -> None:
    made = read(TRACE)
    first, second = made.draw(), made.draw(1, side=120)
    assert first.size == (80, 40)
    assert second.size == (120, 120)
    difference = ImageChops.difference(first, PICTURES[0])
    assert difference.getbbox() is not None
    untouched = np.asarray(difference).sum(axis=2)
    assert untouched[30:, 70:].sum() == 0
    alone = replace(made, looks=made.looks[:1]).draw(1)
    assert ImageChops.difference(alone, PICTURES[1]).getbbox() is None
    with pytest.raises(ValueError, match="no image 2 to draw on; the question had 2"):
        made.draw(2)


def test_json_is_plain_and_has_all_of_it() -> None:
    said = json.loads(json.dumps(read(TRACE).to_json(), allow_nan=False))
    assert said["looks"][1]["regions"] == [{"box": [20, 0, 40, 20], "image": 1}]
    assert said["images"] == [{"size": [80, 40], "tokens": 8}, {"size": [40, 40], "tokens": 4}]
    assert said["trace"][1]["objects"][0] == {"name": "<obj1>", "box": None, "tokens": [1, 2]}
    assert said["answer"] == "a & b"
    assert said["score"] is None


def test_a_real_answer_has_probabilities_counts_and_times() -> None:
    made = predictor()(PICTURES[0], "Where is it?", max_new_tokens=8, distributions=True)
    assert made.looks
    for look in made.looks:
        assert len(look.probabilities) == len(look.entropies) == len(look.tokens)
        assert all(0 < probability <= 1 for probability in look.probabilities)
    assert made.counts is not None
    assert made.counts.generated == 8
    assert made.seconds is not None
    assert min(made.seconds.prepare, made.seconds.prefill, made.seconds.decode) > 0
    assert made.score is not None
    assert made.score < 0
    assert made.distributions is not None
    assert made.distributions.shape == (8, made.counts.image)
    np.testing.assert_allclose(made.distributions.sum(1), 1, atol=1e-5)
    assert "array" not in repr(made)


# ---------------------------------------------------------------- the page


def test_the_page_is_whole_links_both_ways_and_loads_nothing() -> None:
    text = read(TRACE).to_html()
    page = Page(text)
    assert page.text.count("the <b>red</b> one") == 3, "once in the trace, twice in the table"
    assert "Where <i>?" in page.text
    elements = [(tag, attributes) for tag, attributes in page.elements if "data-patch" in attributes]
    patches = [attributes for tag, attributes in elements if tag == "rect"]
    chips = [attributes for tag, attributes in elements if tag == "span"]
    assert [one["data-patch"] for one in patches] == [one["data-patch"] for one in chips] == ["1", "2", "9"]
    assert [one["data-look"] for one in patches] == ["1", "1", "2"]
    assert all(one["tabindex"] == "0" and one["aria-label"] for one in patches), "the keyboard reaches them"
    looks = [own for tag, own in page.elements if own.get("class", "").startswith("look")]
    assert [own["data-look"] for own in looks] == list("11221212"), "names and looks, names, table"
    boxes = [own for tag, own in page.elements if own.get("class") == "box"]
    assert [own["x"] for own in boxes] == ["20", "20"]
    sources = [value for name, value in page.attributes if name in ("src", "href", "action")]
    assert len(sources) == 2
    assert all(value.startswith("data:image/jpeg;base64,") for value in sources)
    assert "prefers-color-scheme: dark" in text


def test_its_policy_allows_its_own_style_and_script_alone() -> None:
    text = read(TRACE).to_html()
    policy = next(own["content"] for tag, own in Page(text).elements if "http-equiv" in own)
    for name, tag in (("style-src", "style"), ("script-src", "script")):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert inside is not None
        digest = base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "style=" not in text.partition("</style>")[2], "the policy allows no styles of elements"


@pytest.mark.parametrize("nasty", ["</p><script>alert(1)</script>", "<img src=x onerror=y>", "\ud800 & \"'"])
def test_nothing_in_a_text_becomes_markup(nasty: str) -> None:
    trace = f'{nasty} detect(query="q", objects=["<obj1><region>{{1}}</region>"]) <answer>{nasty}</answer>'
    made = read(trace.encode(errors="ignore").decode())
    made = replace(made, question=nasty, answer=nasty, looks=(replace(made.looks[0], query=nasty),))
    text = made.to_html()
    plain = read(TRACE).to_html()
    text.encode()
    assert Page(text).tags.count("script") == Page(plain).tags.count("script") == 1
    assert {"img", "b", "i"}.isdisjoint(Page(text).tags)


def test_large_images_are_shrunk_and_none_are_needed() -> None:
    big = replace(read(TRACE, MAPS[:1]), pictures=(Image.new("RGB", (800, 400)),))
    data = re.search(r"base64,([^\"]+)", big.to_html(side=100))
    assert data is not None
    assert len(base64.b64decode(data[1])) < 2500
    assert "<svg" not in replace(big, pictures=()).to_html()
    assert "Looks" not in read("Nothing to see.", ()).to_html()
    assert page_parts.escape("<") == "&lt;"
