"""The page that shows examples: everything in it, nothing executed from it, colours where they belong."""

from __future__ import annotations

import base64
import io
import re
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.html_page import Page
from helpers.pictures import encoded
from PIL import Image

from v1lit.data.encode import encoding
from v1lit.data.example import Example, Message
from v1lit.data.images import read_header
from v1lit.data.shards import ShardWriter, write_index
from v1lit.data.synthetic import synthesize
from v1lit.data.tools.show import PALETTE, color_names, show, token_pieces
from v1lit.data.tools.show_page import TOKEN_STYLES, Card, TextRun, render_png
from v1lit.grounding.region import Region

CALL = 'detect(query="x", objects=["<obj1><|region_1|>"])'
TEXT = f'Tags <b>bold</b> & "quotes" <script>alert(1)</script>\n{CALL} so <obj1>.'


def example(
    id: str = "one/é", text: str = TEXT, regions: dict[str, Region] | None = None, images: int = 1
) -> Example:
    return Example(
        id=id,
        images=tuple(read_header(encoded(color="white")) for _ in range(images)),
        messages=(Message("user", "<image>\n" * images + "Where? 你好"), Message("assistant", text)),
        regions={"<|region_1|>": Region.from_box((10, 10, 30, 30))} if regions is None else regions,
        source="made up",
    )


def written(folder: Path, *examples: Example) -> Path:
    with ShardWriter(folder, max_examples=4) as writer:
        for each in examples:
            writer.write(each)
    write_index(folder, writer.shards)
    return folder


def page_of(source: Path, out: Path, **options: Any) -> Page:
    return Page(show(source, out, **options).read_text(encoding="utf-8"))


def test_text_is_shown_to_the_letter_and_never_becomes_markup(tmp_path: Path) -> None:
    page = page_of(written(tmp_path / "set", example()), tmp_path / "page.html")
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert TEXT in page.text
    for words in ("one/é", "made up", "60 x 40", "shard-000000.tar", "Where? 你好"):
        assert words in page.text


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    page = page_of(written(tmp_path / "set", example()), tmp_path / "page.html")
    links = [value for name, value in page.attributes if name in ("src", "href")]
    assert len(links) == 1
    assert links[0].startswith("data:image/png;base64,")
    assert not any("url(" in value for _, value in page.attributes)


def test_a_region_is_drawn_in_the_colour_of_its_name(tmp_path: Path) -> None:
    regions = {
        "<|region_1|>": Region.from_box((4, 12, 20, 32)),
        "<|region_2|>": Region.from_mask(np.pad(np.ones((10, 10), bool), ((20, 10), (40, 10)))),
    }
    text = 'detect(query="x", objects=["<obj1><|region_1|>", "<obj2><|region_2|>"])'
    page = page_of(written(tmp_path / "set", example(text=text, regions=regions)), tmp_path / "page.html")
    (data,) = [value for name, value in page.attributes if name == "src"]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGB"))
    height, width = picture.shape[:2]
    for color, (left, upper, right, lower) in zip(PALETTE, [(4, 12, 20, 32), (40, 20, 50, 30)], strict=False):
        rgb = tuple(int(color[k : k + 2], 16) for k in (1, 3, 5))
        rows, columns = np.nonzero((picture == rgb).all(axis=2))
        assert columns.min() / width * 60 == pytest.approx(left, abs=0.5)
        assert columns.max() / width * 60 == pytest.approx(right, abs=0.5)
        assert rows.max() / height * 40 == pytest.approx(lower, abs=0.5)
        assert upper - 3 < rows.min() / height * 40 <= upper  # its label stands above it


def test_region_names_and_the_objects_on_them_share_a_colour() -> None:
    text = 'a detect(query="x", objects=["<obj1><|region_1|>", "<obj2><|region_12|>"]) <obj2> <obj3>'
    pieces = color_names(text, {"<|region_1|>": "#111111", "<|region_12|>": "#222222"})
    assert "".join(piece.text for piece in pieces) == text
    assert [(p.text, p.color) for p in pieces if p.bold] == [
        ("<obj1>", "#111111"),
        ("<|region_1|>", "#111111"),
        ("<obj2>", "#222222"),
        ("<|region_12|>", "#222222"),
        ("<obj2>", "#222222"),
    ]


def test_every_image_of_an_example_shows_its_own_regions(tmp_path: Path) -> None:
    regions = {
        "<|region_1|>": Region.from_box((10, 10, 30, 30), image=1),
        "<|region_2|>": Region.from_polygon([(5, 5), (50, 5), (5, 35)], image=1),
    }
    text = "<|region_1|> and <|region_2|>"
    page = page_of(
        written(tmp_path / "set", example(text=text, regions=regions, images=2)), tmp_path / "page.html"
    )
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(value.split(",")[1]))))
        for name, value in page.attributes
        if name == "src"
    ]
    assert (pictures[0] == 255).all()
    assert not (pictures[1] == 255).all()


def test_examples_without_an_image_are_shown(tmp_path: Path) -> None:
    page = page_of(
        written(tmp_path / "set", example(text="Yes.", regions={}, images=0)), tmp_path / "page.html"
    )
    assert "img" not in page.tags
    assert "Yes." in page.text


def test_n_different_examples_are_chosen_by_the_seed(tmp_path: Path) -> None:
    folder = written(tmp_path / "set", *[example(id=f"id{k:02d}") for k in range(10)])  # in three shards

    def ids(**options: Any) -> list[str]:
        return re.findall(r"id\d\d", page_of(folder, tmp_path / "page.html", **options).text)

    assert len(set(ids(n=4))) == 4
    assert ids(n=4) == ids(n=4) == sorted(ids(n=4))
    assert len({tuple(ids(n=4, seed=seed)) for seed in range(3)}) > 1
    assert ids(n=50) == [f"id{k:02d}" for k in range(10)]
    only = page_of(folder / "shard-000002.tar", tmp_path / "page.html", n=50)
    assert re.findall(r"id\d\d", only.text) == ["id08", "id09"]


def test_a_bad_example_is_shown_with_what_is_wrong(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        info = tarfile.TarInfo("broken.json")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))
    page = page_of(tmp_path / "bad.tar", tmp_path / "page.html")
    assert "broken" in page.text
    assert "unreadable" in page.text


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [("page.pdf", {}, "allowed: .html, .png"), ("page", {}, "allowed"), ("page.html", {"n": 0}, "n is 0")],
)
def test_wrong_options_are_named(tmp_path: Path, out: str, options: dict[str, Any], message: str) -> None:
    folder = written(tmp_path / "set", example())
    with pytest.raises(ValueError, match=re.escape(message)):
        show(folder, tmp_path / out, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


def test_a_folder_without_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no examples"):
        show(written(tmp_path / "set"), tmp_path / "page.html")
    with pytest.raises(ValueError, match="does not exist"):
        show(tmp_path / "nothing", tmp_path / "page.html")


def test_png_holds_every_card_whatever_the_text(tmp_path: Path) -> None:
    folder = synthesize(tmp_path / "set", examples=3, look=("shapes", "bars", "diagrams"), progress=False)
    with Image.open(show(folder, tmp_path / "page.png")) as page:
        assert page.format == "PNG"
        assert page.height > 3 * 448
    long = Card(
        "long",
        sections=[("user", [TextRun("x" * 5000), TextRun("\n\x00\t\r\u202e你", mark="pointer")])],
    )
    assert len(render_png("title", [long, Card("empty")])) > 1000


# --- tokens ------------------------------------------------------------------------------------------------

IMAGE_TOKEN, POINTER_START = 300, 400


class Bytes:
    """A processor whose tokens are the bytes of the text."""

    image_token_id = IMAGE_TOKEN
    pointer_start = POINTER_START

    def decode(self, ids: list[int]) -> str:
        if any(token >= POINTER_START for token in ids):
            return "".join(f"<|copy_{token - POINTER_START}|>" for token in ids)
        return bytes(ids).decode(errors="replace")


def test_tokens_are_marked_by_what_the_loss_does_with_them() -> None:
    ids = [65, IMAGE_TOKEN, IMAGE_TOKEN, IMAGE_TOKEN, 66, POINTER_START + 7, POINTER_START + 8, 67]
    learned = [False, False, False, False, True, True, False, True]
    pieces = token_pieces(ids, learned, Bytes(), {5: "#123456"})  # type: ignore[arg-type]
    assert [(p.text, p.mark) for p in pieces] == [
        ("A", "prompt"),
        ("[image: 3 tokens]", "image"),
        ("B", "learned"),
        ("<|copy_7|>", "pointer"),
        ("<|copy_8|>", "given pointer"),
        ("C", "learned"),
    ]
    assert pieces[3].color == "#123456"


def test_the_end_of_a_run_is_not_written_as_a_patch() -> None:
    ids = [IMAGE_TOKEN, IMAGE_TOKEN, POINTER_START + 1, POINTER_START + 2, 65]
    pieces = token_pieces(ids, [False, False, True, True, True], Bytes())  # type: ignore[arg-type]
    assert [p.text for p in pieces[1:]] == ["<|copy_1|>", "[end]", "A"]
    assert pieces[2].mark == "pointer"


def test_the_tokens_of_one_character_are_one_piece() -> None:
    ids = [*"é你".encode(), 65, 0xFF]
    pieces = token_pieces(ids, [True] * len(ids), Bytes())  # type: ignore[arg-type]
    assert [p.text for p in pieces] == ["é", "你", "A", "\ufffd"]


def test_the_page_colours_tokens_when_a_processor_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [65, IMAGE_TOKEN, IMAGE_TOKEN, 66, POINTER_START + 1]

    def encode(example: Example, processor: Bytes, config: object) -> SimpleNamespace:
        span = SimpleNamespace(name="<|region_1|>", start=4, stop=5)
        labels = [-100, -100, -100, 66, POINTER_START + 1]
        return SimpleNamespace(
            input_ids=np.array(ids), labels=np.array(labels), regions=(span,), cut=2, unseen=("<|region_9|>",)
        )

    monkeypatch.setattr(encoding, "encode", encode)
    page = page_of(written(tmp_path / "set", example()), tmp_path / "page.html", processor=Bytes())
    assert "5 tokens, 2 learned, 1 pointers" in page.text
    assert "2 tokens cut from the end" in page.text
    assert "no image token sees <|region_9|>" in page.text
    for words in ("[image: 2 tokens]", "<|copy_1|>"):
        assert words in page.text
    used = {value.split("background:")[1] for name, value in page.attributes if "background:" in value}
    assert used == {TOKEN_STYLES[mark][0] for mark in ("prompt", "learned", "pointer", "image")}


def test_an_example_that_cannot_be_encoded_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*_: object) -> None:
        raise ValueError("too long by 7")

    monkeypatch.setattr(encoding, "encode", encode)
    page = page_of(written(tmp_path / "set", example()), tmp_path / "page.html", processor=Bytes())
    assert "cannot be encoded: too long by 7" in page.text


def test_of_a_folder_with_splits_the_training_split_is_shown(tmp_path: Path) -> None:
    written(tmp_path / "v1g" / "train", example("in-train"))
    written(tmp_path / "v1g" / "val", example("in-val"))
    page = show(tmp_path / "v1g", tmp_path / "page.html").read_text(encoding="utf-8")
    assert "in-train" in page
    assert "in-val" not in page
    assert str(Path("v1g") / "train") in page
