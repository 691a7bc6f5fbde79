"""The page in a browser: asked, looked at, given what it cannot use, on a phone and in the dark."""

from __future__ import annotations

import io
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.asked import predictor
from helpers.browsed import PHONE, Shown, Visit, browsing, showing
from PIL import Image

from v1lit.demo.examples import drawn
from v1lit.demo.limits import Deadline, DemoLimits
from v1lit.inference.prediction import Prediction
from v1lit.steering import Steering
from v1lit.testing.models import noise

pytest.importorskip("gradio", reason="gradio is not installed")
pytestmark = pytest.mark.slow

LIMITS = DemoLimits(upload_mb=1, pixels=1_000_000, new_tokens=64, waiting=1)
MODEL, SCREENSHOT = "V1LIT_DEMO_MODEL", "V1LIT_DEMO_SCREENSHOT"
"""In the environment: a trained model, and where its page is kept as a picture; for docs/images/demo.png."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as one:
        yield one


@pytest.fixture(scope="module")
def shown(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    models = {"tiny": predictor(), "other": predictor("llava")}
    with showing(models, str(tmp_path_factory.mktemp("gradio")), LIMITS, drawn(3)) as one:
        yield one


@pytest.fixture(scope="module")
def visit(browser: Any, shown: Shown) -> Iterator[Visit]:
    """One visitor for all tests; each finds the page as the last one left it."""
    one = Visit(browser, shown.url)
    yield one
    one.close()


@pytest.fixture(scope="module")
def phone(browser: Any, shown: Shown) -> Iterator[Visit]:
    """Another visitor, in the dark."""
    one = Visit(browser, shown.url, color_scheme="dark", **PHONE)
    yield one
    one.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Holds every answer at its fourth token until it is set."""
    opened, call, told = threading.Event(), Deadline.__call__, Deadline.stop
    tokens: dict[int, int] = {}

    def held(self: Deadline, *args: Any, **options: Any) -> Any:
        tokens[id(self)] = tokens.get(id(self), 0) + 1
        assert tokens[id(self)] < 4 or opened.wait(60)
        return call(self, *args, **options)

    def stop(self: Deadline) -> None:
        told(self)
        opened.set()

    monkeypatch.setattr(Deadline, "__call__", held)
    monkeypatch.setattr(Deadline, "stop", stop)
    yield opened
    opened.set()


def choose(visit: Visit, number: int = 0) -> str:
    """Choose an example; returns its question."""
    question = drawn(3)[number].question
    visit.page.locator("#examples button").nth(number).click()
    visit.page.wait_for_function(
        f"document.querySelector('#question textarea').value == {json.dumps(question)}"
    )
    visit.page.locator("#picture img").first.wait_for()
    return question


def answer_of_the_first(**options: Any) -> Prediction:
    """What the first model says of the first example, asked as the first test asks it."""
    picture, question = drawn(1)[0].picture, drawn(1)[0].question
    steer = Steering(queries=["the red box"], max_pointers=3)
    return predictor()(picture, question, max_new_tokens=40, steer=steer, **options)


# ---------------------------------------------------------------- asked, and looked at


def test_an_example_is_answered_as_by_the_predictor_beside_another_model(visit: Visit) -> None:
    question = choose(visit)
    visit.set("max-new-tokens", "40")
    visit.set("queries", "the red box")
    visit.set("max-pointers", "3")
    assert "40 tokens" in visit.ask()
    own = answer_of_the_first()
    assert own.question == question
    assert visit.lit(".look") == []
    pointers = visit.page.locator("#answer-1 p .pointer").all_inner_texts()
    assert pointers == [str(token) for look in own.looks for token in look.tokens] != []
    boxes = visit.page.locator("#answer-1 svg g .box").count()
    assert boxes == sum(len(region.boxes()) for region in own.regions)  # type: ignore[arg-type]
    assert visit.page.locator("#answer-2 svg image").count() == 1
    assert "40 tokens" in visit.text("#answer-2 .status")


def test_words_and_patches_light_up_together_for_mouse_and_keyboard(visit: Visit) -> None:
    page = visit.page
    word = page.locator("#answer-1 p .look", has_text="<obj").first
    number = word.get_attribute("data-look")
    inside = page.locator(f"#answer-1 p .pointer[data-look='{number}']").all_inner_texts()
    word.hover()
    assert set(visit.lit(".patch")) == set(inside) != set()
    assert visit.lit("g") == [number]
    patch = page.locator("#answer-1 .patch").first
    patch.hover()
    token = patch.get_attribute("data-patch")
    assert set(visit.lit(".pointer")) == {token}
    assert set(visit.lit(".patch")) == {token}
    page.mouse.move(1, 1)
    assert visit.lit(".patch") == []
    word.focus()
    assert set(visit.lit(".patch")) == set(inside)
    page.keyboard.press("Escape")
    assert visit.lit(".patch") == []


def test_a_heat_map_of_every_token_under_a_slider(visit: Visit) -> None:
    own = answer_of_the_first(distributions=True)
    assert own.distributions is not None
    slider = visit.page.locator("#step-1 input[type=range]")
    for _ in range(2):
        before = int(slider.input_value())
        slider.press("ArrowRight")
        visit.page.locator(f"#heat-1 .sure:has-text('Step {before + 1} of 40')").wait_for()
        likely = own.distributions[before]
        assert f"likeliest patch {likely.argmax()}, {likely.max():.1%}" in visit.text("#heat-1 .sure")
        darkest = visit.page.locator("#heat-1 rect[fill-opacity='1.000'] title").evaluate_all(
            "t => t.map(x => x.textContent)"
        )
        assert f"patch {likely.argmax()}: {likely.max():.1%}" in darkest


def test_it_takes_away_json_page_and_picture(visit: Visit) -> None:
    own = answer_of_the_first()
    got = {}
    for kind in ("json", "html", "png"):
        with visit.page.expect_download() as download:
            visit.page.locator(f"#{kind}-1").click()
        assert download.value.suggested_filename == f"prediction-1.{kind}"
        got[kind] = Path(download.value.path()).read_bytes()
    told, expected = json.loads(got["json"]), own.to_json()
    assert {**told, "seconds": None} == {**expected, "seconds": None}
    assert got["html"].decode().startswith("<!doctype html>")
    assert Image.open(io.BytesIO(got["png"])).size == (168, 168)


def test_it_is_watched_while_it_is_written_and_stopped(visit: Visit, gate: threading.Event) -> None:
    page = visit.page
    page.locator("#ask:not([disabled])").click()
    page.locator("#answer-1 .status:has-text('writing')").wait_for()
    assert page.locator("#answer-1 svg image").count() == 1
    page.locator("#stop:not([disabled])").click()
    page.locator("#answer-1 .status:has-text('4 tokens'):has-text('stopped')").wait_for()
    page.locator("#ask:not([disabled])").wait_for()


def test_sampling_and_steering(visit: Visit) -> None:
    visit.set("inside", "0, 0, 20, 20")
    visit.ask()
    assert "the red box" in visit.text("#answer-1 table")
    assert set(visit.page.locator("#answer-1 p .pointer").all_inner_texts()) == {"0"}
    visit.set("inside", "")
    visit.set("queries", "")

    def drawn_by(seed: str) -> str:
        visit.set("seed", seed)
        visit.ask()
        return visit.text("#answer-1 h2:has-text('Trace') + p")

    visit.set("temperature", "1.5")
    visit.set("max-new-tokens", "12")
    assert drawn_by("1") == drawn_by("1") != drawn_by("2")
    visit.set("temperature", "0")


def test_a_picture_from_a_file_and_from_the_clipboard(visit: Visit, tmp_path: Path) -> None:
    noise((84, 56)).save(tmp_path / "mine.png")
    visit.put(tmp_path / "mine.png")
    visit.page.locator("#picture img").first.wait_for()
    visit.ask("Where is it?")
    assert "84 x 56 pixels" in visit.text("#answer-1 figcaption")
    script = """async () => {
      const canvas = Object.assign(document.createElement("canvas"), {width: 112, height: 84});
      canvas.getContext("2d").fillRect(0, 0, 50, 50);
      const blob = await new Promise(done => canvas.toBlob(done));
      await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
    }"""
    visit.page.evaluate(script)
    visit.clear()
    visit.page.locator("#picture [aria-label='Paste from clipboard']").first.click()
    visit.page.locator("#picture img").first.wait_for()
    visit.ask()
    assert "112 x 84 pixels" in visit.text("#answer-1 figcaption")


def test_with_the_keyboard_alone_and_no_text_becomes_markup(visit: Visit) -> None:
    page, nasty = visit.page, "<img src=x onerror=alert(1)> ${1 + 1} {{2}} `"
    page.locator("#question textarea").fill(nasty)
    page.locator("#question textarea").press("Enter")
    page.locator("#stop:not([disabled])").wait_for()
    page.locator("#ask:not([disabled])").wait_for()
    assert visit.text("#answer-1 h2:has-text('Question') + p") == nasty
    page.locator("#examples button").nth(1).focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        f"document.querySelector('#question textarea').value == {json.dumps(drawn(2)[1].question)}"
    )
    page.locator("#ask").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"


# ---------------------------------------------------------------- what it cannot use


def test_what_cannot_be_asked_is_told(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture at all")
    Image.new("1", (2000, 2000)).save(tmp_path / "bomb.png")
    (tmp_path / "huge.png").write_bytes(bytes(2 * 2**20))
    for name, why in (
        ("bad.png", "bad.png: the image is not a readable JPEG, PNG, WebP, BMP or GIF file"),
        ("bomb.png", "2000 x 2000 = 4000000 pixels, the limit is 1000000"),
        ("huge.png", "exceed the maximum allowed size"),
    ):
        visit.put(tmp_path / name)
        assert why in visit.told()
    visit.clear()
    visit.page.locator("#ask:not([disabled])").click()
    assert "there is no picture: upload or paste one, or choose an example" in visit.told()
    choose(visit)
    visit.set("outside", "1 2 3")
    visit.page.locator("#ask:not([disabled])").click()
    assert "Do not look at, line 1: a box is x1, y1, x2, y2 in pixels, not '1 2 3'" in visit.told()
    assert "comes here" in visit.text("#answer-1")
    visit.set("outside", "")


def test_a_full_queue_is_told(
    browser: Any, shown: Shown, visit: Visit, phone: Visit, gate: threading.Event
) -> None:
    visit.complaints.clear()  # of what it was given above
    third = Visit(browser, shown.url)
    for one, sign in (
        (visit, ".status:has-text('writing')"),
        (phone, ".hint:has-text('not begun')"),
        (third, ".hint:has-text('comes here')"),
    ):
        choose(one)
        one.page.locator("#ask:not([disabled])").click()
        if one is third:
            assert "busy" in one.told()
        one.page.locator(f"#answer-1 {sign}").wait_for()
    third.close()
    gate.set()
    for one in (visit, phone):
        one.page.locator("#ask:not([disabled])").wait_for()
        assert "tokens behind" in one.text("#answer-1 .status")


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {"Host": "elsewhere.example"}, 400),
        ("/gradio_api/file=/etc/passwd", {}, 403),
        ("/gradio_api/file=../../etc/passwd", {}, 403),
    ],
)
def test_other_names_and_files_are_refused(
    shown: Shown, path: str, headers: dict[str, str], status: int
) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(shown.url + path, headers=headers), timeout=30)
    assert refused.value.code == status


def test_a_client_that_does_not_ask_the_browser_is_held_to_the_size_too(shown: Shown) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head + bytes(2 * 2**20) + b"\r\n--x--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=x"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(
            urllib.request.Request(f"{shown.url}/gradio_api/upload", body, kind), timeout=30
        )
    assert refused.value.code == 413


# ---------------------------------------------------------------- how it looks


def test_on_a_phone_in_the_dark(phone: Visit) -> None:
    choose(phone)
    phone.set("max-new-tokens", "8")
    phone.ask()
    width = phone.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width == [390, 390]
    script = """selector => {
      const style = getComputedStyle(document.querySelector(selector));
      return [style.color, style.backgroundColor].map(c => c.match(/[\\d.]+/g).slice(0, 3).map(Number));
    }"""
    ink, _ = phone.page.evaluate(script, "#answer-1 section p")
    _, ground = phone.page.evaluate(script, "#answer-1 section")
    assert min(ink) > 200
    assert max(ground) < 70
    assert phone.complaints == []


def test_nothing_came_from_elsewhere_and_nothing_failed(visit: Visit, shown: Shown) -> None:
    assert visit.complaints == []
    assert len(visit.requests) > 50
    assert {url for url in visit.requests if not url.startswith((f"{shown.url}/", "data:", "blob:"))} == set()
    assert shown.outward == []
    with urllib.request.urlopen(shown.url, timeout=30) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_the_screenshot_of_the_docs(browser: Any, visit: Visit, tmp_path: Path) -> None:
    out = Path(os.environ.get(SCREENSHOT) or tmp_path / "demo.png")

    def take(one: Visit) -> None:
        choose(one)
        one.set("max-new-tokens", "64")
        one.page.get_by_text("Sampling", exact=True).click()
        one.page.get_by_text("Steering", exact=True).click()
        one.ask()
        one.page.locator("#answer-1 td .look").last.hover()
        Image.open(io.BytesIO(one.page.screenshot())).convert("RGB").save(out, optimize=True)

    if os.environ.get(MODEL):
        import v1lit

        trained = {"quickstart": v1lit.load(os.environ[MODEL])}
        with showing(trained, str(tmp_path / "gradio"), DemoLimits(), drawn()) as other:
            take(Visit(browser, other.url))
    else:
        take(visit)
    picture = Image.open(out)
    assert picture.size == (1280, 900)
    assert out.stat().st_size < 300_000
    assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 20
