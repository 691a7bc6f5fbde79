"""The page of `show`: cards of pictures and coloured text, as HTML or as one picture."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

INK = "#1c1c22"
RED = "#b00020"
GREY = "#6b6b76"
TOKEN_STYLES = {
    "prompt": ("#ececf0", "not learned"),
    "learned": ("#cdeccd", "learned"),
    "pointer": ("#ffd08a", "learned pointer"),
    "given pointer": ("#f3e6cf", "pointer, not learned"),
    "image": ("#cfe0ff", "image tokens"),
}
"""Kind of token -> its background and what the legend says."""


@dataclass(frozen=True)
class TextRun:
    """Text in one style. `mark` is "" or a key of `TOKEN_STYLES`."""

    text: str
    color: str = INK
    mark: str = ""
    bold: bool = False


@dataclass
class Card:
    """What is shown of one example."""

    title: str
    subtitle: str = ""
    images: list[Image.Image] = field(default_factory=list)
    sections: list[tuple[str, list[TextRun]]] = field(default_factory=list)
    """Heading and text, from top to bottom."""


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c22; background: #f4f4f6;
  margin: 2em auto; max-width: 1180px; padding: 0 1em; }
h1 { font-size: 1.2em; }
h2 { font-size: 1em; margin: 0; }
h3 { font-size: .8em; color: #6b6b76; margin: .8em 0 .1em; text-transform: uppercase; letter-spacing: .05em; }
p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
img { display: block; max-width: 100%; border: 1px solid #dcdce2; margin-bottom: .5em; }
.card { background: #fff; border: 1px solid #dcdce2; border-radius: 8px; padding: 1em; margin: 1em 0;
  display: flex; gap: 1.2em; flex-wrap: wrap; }
.card > figure { margin: 0; }
.card > div { flex: 1 1 420px; min-width: 0; }
.sub { color: #6b6b76; font-size: .85em; }
.token { font-family: ui-monospace, monospace; font-size: .85em; padding: .1em 0; border-radius: 3px;
  border-right: 1px solid #fff; box-decoration-break: clone; }
"""


def render_html(title: str, cards: Sequence[Card]) -> bytes:
    """A page that needs no other file; all text is escaped."""
    body = "\n".join(_html_card(card) for card in cards)
    legend = _html_text(_legend(cards))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{legend}\n{body}\n</body></html>\n"
    ).encode()


def _legend(cards: Sequence[Card]) -> list[TextRun]:
    used = {piece.mark for card in cards for _, pieces in card.sections for piece in pieces}
    return [TextRun(f" {words} ", mark=mark) for mark, (_, words) in TOKEN_STYLES.items() if mark in used]


def _html_card(card: Card) -> str:
    pngs = (base64.b64encode(_png(image)).decode() for image in card.images)
    pictures = "".join(f'<img alt="" src="data:image/png;base64,{png}">' for png in pngs)
    sections = "".join(f"<h3>{html.escape(name)}</h3>{_html_text(pieces)}" for name, pieces in card.sections)
    return (
        f'<section class="card"><figure>{pictures}</figure><div><h2>{html.escape(card.title)}</h2>'
        f'<span class="sub">{html.escape(card.subtitle)}</span>{sections}</div></section>'
    )


def _html_text(pieces: Sequence[TextRun]) -> str:
    return f'<p dir="auto">{"".join(map(_html_piece, pieces))}</p>'


def _html_piece(piece: TextRun) -> str:
    # A line end inside a token gets a sign of its own: it is learned like any other token.
    text = html.escape(piece.text.replace("\n", "↵\n") if piece.mark else piece.text)
    if piece.mark:
        background, words = TOKEN_STYLES[piece.mark]
        return f'<span class="token" title="{words}" style="background:{background}">{text}</span>'
    if piece.color == INK and not piece.bold:
        return text
    weight = ";font-weight:600" if piece.bold else ""
    return f'<span style="color:{piece.color}{weight}">{text}</span>'


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


WIDTH, TEXT_LEFT, MARGIN, LINE, FONT = 1180, 490, 20, 22, 15
"""Pixels of the picture: its width, where text begins, the margin, the height of a line and of letters."""


def render_png(title: str, cards: Sequence[Card]) -> bytes:
    """All cards below each other in one picture."""
    strips = [_text_strip([TextRun(title, bold=True)], WIDTH - 2 * MARGIN)]
    if legend := _legend(cards):
        strips.append(_text_strip(legend, WIDTH - 2 * MARGIN))
    strips += [_png_card(card) for card in cards]
    page = Image.new("RGB", (WIDTH, sum(s.height + MARGIN for s in strips) + MARGIN), "#ffffff")
    y = MARGIN
    for strip in strips:
        page.paste(strip, (MARGIN, y))
        y += strip.height + MARGIN
    return _png(page)


def _png_card(card: Card) -> Image.Image:
    pieces = [TextRun(card.title, bold=True), TextRun(f"\n{card.subtitle}\n", color=GREY)]
    for name, section in card.sections:
        pieces += [TextRun(f"\n{name.upper()}\n", color=GREY), *section, TextRun("\n")]
    text = _text_strip(pieces, WIDTH - TEXT_LEFT - 2 * MARGIN)
    height = max(text.height, sum(image.height + 8 for image in card.images)) + MARGIN
    strip = Image.new("RGB", (WIDTH - 2 * MARGIN, height), "#ffffff")
    ImageDraw.Draw(strip).line((0, 0, strip.width, 0), fill="#dcdce2")
    y = MARGIN
    for image in card.images:
        strip.paste(image, (0, y))
        y += image.height + 8
    strip.paste(text, (TEXT_LEFT - MARGIN, MARGIN))
    return strip


def _text_strip(pieces: Sequence[TextRun], width: int) -> Image.Image:
    """The text broken into lines of at most `width` pixels."""
    letters = ImageFont.load_default(FONT)
    placed, x, y = [], 0.0, 0
    for word, piece in _words(pieces):
        if word == "\n":
            x, y = 0.0, y + LINE
            continue
        for part in _fitting(word, letters, width):
            length = letters.getlength(part)
            if x > 0 and x + length > width:
                x, y = 0.0, y + LINE
            if x == 0 and not piece.mark and not part.strip():
                continue  # no space at the start of a line
            placed.append((x, y, part, length, piece))
            x += length
    strip = Image.new("RGB", (width, y + LINE + 2), "#ffffff")
    pen = ImageDraw.Draw(strip)
    for x, y, part, length, piece in placed:
        if piece.mark:
            # One pixel less than the text: the gap shows where a token ends.
            pen.rectangle((x, y + 1, x + length - 2, y + LINE - 3), fill=TOKEN_STYLES[piece.mark][0])
        pen.text(
            (x, y + LINE - 7),
            part,
            fill=piece.color,
            font=letters,
            anchor="ls",
            stroke_width=0.4 if piece.bold else 0,
            stroke_fill=piece.color,
        )
    return strip


def _words(pieces: Sequence[TextRun]) -> Iterator[tuple[str, TextRun]]:
    for piece in pieces:
        # The built-in font has no sign for a line end.
        text = piece.text.replace("\n", "\\n\n") if piece.mark else piece.text
        for word in [text] if piece.mark and "\n" not in text else re.findall(r"\n|[^\S\n]+|\S+", text):
            yield word, piece


def _fitting(word: str, letters: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """A word in pieces that are not wider than a line; nearly always itself."""
    if letters.getlength(word) <= width:
        return [word]
    step = max(1, int(len(word) * width / letters.getlength(word) * 0.7))
    return [word[at : at + step] for at in range(0, len(word), step)]
