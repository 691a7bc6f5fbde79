"""Pictures of regions, of pointed patches, and of a whole answer with its question and trace.

Images are drawn on as a person sees them (`as_seen`): what is drawn is in pixels of the turned image.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from v1lit.grounding import raster
from v1lit.grounding.markup import CALL, POINTER
from v1lit.grounding.patch_map import PatchMap
from v1lit.grounding.picture import as_seen, by
from v1lit.grounding.region import Region, Size

Color = str
"""A colour as `#rrggbb` or by a name that Pillow knows."""

POINTED: Color = "#d6006c"
TRUE: Color = "#0b7285"
PALETTE: tuple[Color, ...] = (TRUE, POINTED, "#5f3dc4", "#2b8a3e", "#e8590c", "#1864ab", "#846100", "#495057")

_INK, _FAINT, _CALL, _RULE = "#212529", "#868e96", "#1864ab", "#dee2e6"
_MARGIN, _TEXT_WIDTH, _TEXT_SIZE, _MAX_LINES, _MAX_CHARACTERS = 28, 520, 19, 48, 8000
_CALLS = re.compile(rf"({re.escape(CALL)}.*?\]\))", re.DOTALL)
_POINTERS = re.compile(rf"((?:{POINTER.pattern})+)")
_UNDRAWABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\ud800-\udfff]")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_regions(
    image: Image.Image,
    regions: Sequence[Region],
    labels: Sequence[str] | None = None,
    colors: Sequence[Color] | None = None,
    side: int | None = None,
) -> Image.Image:
    """A copy of `image` with every region outlined, each in a colour of its own, and tagged with its label.

    Colours are used in turn. With `side` the copy's longer side has that many pixels. Raises ValueError if
    there are labels, but not one for every region.
    """
    if labels is not None and len(labels) != len(regions):
        raise ValueError(f"there are {len(regions)} regions, but {len(labels)} labels")
    seen = as_seen(image)
    size = seen.size
    picture = seen.copy() if side is None else seen.resize(shown_size(size, side), Image.Resampling.LANCZOS)
    colors = colors or PALETTE
    for number, region in enumerate(regions):
        color = colors[number % len(colors)]
        picture = _outline(picture, _mask(region, size, picture.size), color)
    for number, label in enumerate(labels or ()):
        x, y = np.array(regions[number].box[:2]) * picture.size / size
        _tag(picture, (x, y), label, colors[number % len(colors)])
    return picture


def shown_size(size: Size, side: int) -> Size:
    """The size with its longer side of that many pixels."""
    scale = side / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def draw_tokens(
    image: Image.Image, patch_map: PatchMap, tokens: Iterable[int], color: Color = POINTED
) -> Image.Image:
    """A copy of `image` with the patches that `tokens` see shaded and outlined.

    `image` may be larger or smaller than the image that the map is for. Tokens that see no part of it are
    left out. Raises ValueError if the map is for the image's size before it was turned.
    """
    picture = _seen_by(patch_map, image).copy()
    nowhere = set(np.flatnonzero(~patch_map.spatial).tolist())
    seen = sorted({int(token) for token in tokens} - nowhere)
    if not seen:
        return picture
    mask = _mask(patch_map.region(seen), patch_map.image_size, picture.size)
    picture = _blend(picture, mask, color, 0.28)
    scale = np.tile(np.array(picture.size) / patch_map.image_size, 2)
    cells = Image.new("L", picture.size)
    for box in patch_map.boxes[seen] * scale:
        ImageDraw.Draw(cells).rectangle(tuple(np.round(box).astype(int).tolist()), outline=255)
    picture = _blend(picture, np.asarray(cells) > 0, color, 0.55)
    return _outline(picture, mask, color, casing=False)


def panel(
    image: Image.Image,
    question: str,
    trace_text: str,
    *,
    patch_map: PatchMap | None = None,
    tokens: Iterable[int] = (),
    truth: Region | Sequence[Region] = (),
    caption: str = "",
    side: int = 480,
) -> Image.Image:
    """One answer as a picture: the image with pointed patches and true region, beside question and trace.

    Args:
        image: the original image, as a file has it or turned; shown with its longer side `side` pixels long.
        question: any text, shown as it is.
        trace_text: any text; runs of pointers are shortened, overlong texts cut, both visibly.
        patch_map: where the image's tokens look; without it no patches are drawn.
        tokens: the tokens pointed at.
        truth: the true region or regions.
        caption: one line below the trace, such as the scores.
        side: of the image shown, in pixels.
    """
    truths = [truth] if isinstance(truth, Region) else list(truth)
    pointed = sorted(set(tokens)) if patch_map is not None else []
    seen = as_seen(image) if patch_map is None else _seen_by(patch_map, image)
    shown = seen.resize(shown_size(seen.size, side), Image.Resampling.LANCZOS)
    if patch_map is not None:
        shown = draw_tokens(shown, patch_map, pointed)
    for region in truths:
        shown = _outline(shown, _mask(region, seen.size, shown.size), TRUE)

    text = _text_column(question, trace_text, caption)
    legend = _legend(len(pointed), patch_map is not None, len(truths))
    left = max(shown.width, legend.width)
    height = max(shown.height + (legend.height + 14 if legend.height > 1 else 0), text.height)
    page = Image.new("RGB", (left + text.width + 3 * _MARGIN, height + 2 * _MARGIN), "white")
    page.paste(shown, (_MARGIN, _MARGIN))
    frame = (_MARGIN - 1, _MARGIN - 1, _MARGIN + shown.width, _MARGIN + shown.height)
    ImageDraw.Draw(page).rectangle(frame, outline=_RULE)
    page.paste(legend, (_MARGIN, _MARGIN + shown.height + 14))
    page.paste(text, (left + 2 * _MARGIN, _MARGIN))
    return page


def _seen_by(patch_map: PatchMap, image: Image.Image) -> Image.Image:
    """The image as a person sees it. Raises ValueError if the map is for its size before it was turned."""
    seen = as_seen(image)
    if patch_map.image_size == image.size != seen.size:
        raise ValueError(
            f"the patch map is for {by(image.size)} pixels, but its EXIF orientation turns this image to "
            f"{by(seen.size)}; make the map with the size of v1lit.grounding.as_seen(image)"
        )
    return seen


def _mask(region: Region, image_size: Size, shown_size: Size) -> raster.Mask:
    """`[height, width]`: the region's pixels in the picture shown, whatever its size."""
    if region.kind == "mask":
        shown = Image.fromarray(region.mask(image_size)).resize(shown_size, Image.Resampling.NEAREST)
        return np.asarray(shown)
    scale = np.array(shown_size) / image_size
    scaled = np.asarray(region.data, dtype=float).reshape(-1, 2) * scale
    if region.kind == "polygon":
        return Region.from_polygon(scaled.tolist()).mask(shown_size)
    return Region.from_boxes(scaled.reshape(-1, 4).tolist()).mask(shown_size)


def _blend(picture: Image.Image, mask: raster.Mask, color: Color, share: float) -> Image.Image:
    alpha = Image.fromarray((mask * round(255 * share)).astype(np.uint8))
    return Image.composite(Image.new("RGB", picture.size, color), picture, alpha)


def _outline(picture: Image.Image, mask: raster.Mask, color: Color, casing: bool = True) -> Image.Image:
    """The border of the mask in `color`, 3 pixels wide, cased in white so that it shows on any ground."""
    if casing:
        picture = _blend(picture, _border(mask, 3), "white", 0.9)
    return _blend(picture, _border(mask, 1), color, 1.0)


def _border(mask: raster.Mask, reach: int) -> raster.Mask:
    """Pixels up to `reach` pixels to either side of the mask's border."""
    padded = Image.fromarray(np.pad(mask, reach).astype(np.uint8) * 255)
    grown, shrunk = (
        np.asarray(padded.filter(f(2 * reach + 1))) for f in (ImageFilter.MaxFilter, ImageFilter.MinFilter)
    )
    return ((grown > 0) & (shrunk == 0))[reach:-reach, reach:-reach]


def _tag(picture: Image.Image, corner: tuple[float, float], label: str, color: Color) -> None:
    """A label on a coloured ground, on top of the upper left corner of a box where there is room."""
    x, y = corner
    font = ImageFont.load_default(13)
    label = _clean(label)
    width, height = round(font.getlength(label)) + 8, 18
    left = round(min(max(x, 0), max(picture.width - width, 0)))
    upper = round(y - height if y >= height else y)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left, upper, left + width, upper + height), fill=color)
    draw.text((left + 4, upper + 1), label, fill="white", font=font)


def _legend(patches: int, with_patches: bool, truths: int) -> Image.Image:
    entries = []
    if with_patches:
        entries.append((POINTED, True, f"pointed patches ({patches})"))
    if truths:
        entries.append((TRUE, False, "true region" if truths == 1 else f"true regions ({truths})"))
    font = ImageFont.load_default(15)
    widths = [34 + round(font.getlength(text)) + 22 for *_, text in entries]
    strip = Image.new("RGB", (max(sum(widths), 1), 22 if entries else 1), "white")
    for (color, filled, text), x in zip(entries, np.cumsum([0, *widths]).tolist(), strict=False):
        mask = np.zeros((22, strip.width), dtype=bool)
        mask[4:18, x + 2 : x + 24] = True
        if filled:
            strip = _blend(strip, mask, color, 0.28)
        strip = _outline(strip, mask, color, casing=False)
        ImageDraw.Draw(strip).text((x + 34, 2), text, fill=_INK, font=font)
    return strip


def _text_column(question: str, trace_text: str, caption: str) -> Image.Image:
    """Question, trace and caption under small headings, one image as high as they need."""
    font, small, big = map(ImageFont.load_default, (_TEXT_SIZE, 14, _TEXT_SIZE + 3))
    sections = [("Question", [(question.strip(), _INK)], big)]
    sections.append(("Generated trace", _spans(trace_text[:_MAX_CHARACTERS].strip()), font))
    if caption:
        sections.append(("Result", [(caption, _INK)], font))
    canvas = Image.new("RGB", (_TEXT_WIDTH, 120 + 3 * (_MAX_LINES + 3) * 30), "white")
    draw = ImageDraw.Draw(canvas)
    y = 0
    for heading, spans, face in sections:
        draw.text((0, y), heading.upper(), fill=_FAINT, font=small)
        y += 24
        for line in _wrap(spans, face, _TEXT_WIDTH):
            x = 0.0
            for words, color in line:
                draw.text((x, y), words, fill=color, font=face)
                x += face.getlength(words)
            y += 30 if face is big else 27
        y += 16
    return canvas.crop((0, 0, _TEXT_WIDTH, y - 16))


def _spans(text: str) -> list[tuple[str, Color]]:
    """Parts of a trace with their colours: text, calls, pointers (of long runs the ends and their count)."""
    spans = []
    for piece in _CALLS.split(text):
        for number, part in enumerate(_POINTERS.split(piece)):
            base = _CALL if piece.startswith(CALL) else _INK
            spans.append((_shorten(part), POINTED) if number % 2 else (part, base))
    return [span for span in spans if span[0]]


def _shorten(pointers: str) -> str:
    names = re.findall(r"<[^>]*>", pointers)
    return pointers if len(names) <= 3 else f"{names[0]} … {names[-1]} ({len(names)} pointers)"


def _wrap(spans: list[tuple[str, Color]], font: Font, width: int) -> list[list[tuple[str, Color]]]:
    """Lines of coloured words, none wider than `width`, broken at spaces where possible, and not too many."""
    lines: list[list[tuple[str, Color]]] = [[]]
    used = 0.0
    for text, color in spans:
        for word in re.findall(r"\n|[^\S\n]+|[^\s<]+|<[^\s<]*", _clean(text)):
            for piece in _fitting(word, font, width):
                length = font.getlength(piece)
                if piece == "\n" or used + length > width:
                    lines.append([])
                    used = 0.0
                if piece != "\n" and not (piece.isspace() and used == 0):
                    lines[-1].append((piece, color))
                    used += length
    if len(lines) > _MAX_LINES:
        lines = [*lines[:_MAX_LINES], [("… (cut here)", _FAINT)]]
    return lines


def _fitting(word: str, font: Font, width: int) -> list[str]:
    """A word, cut into pieces where it is wider than a line."""
    if word == "\n" or font.getlength(word) <= width:
        return [word]
    step = max(int(width / max(font.getlength(word) / len(word), 1) * 0.6), 1)
    cuts = [*range(0, len(word), step), len(word)]
    return [word[a:b] for a, b in pairwise(cuts)]


def _clean(text: str) -> str:
    """Text that any font can draw: short enough, no control characters, no halves of surrogate pairs."""
    text = text[:_MAX_CHARACTERS].replace("\r\n", "\n").replace("\r", "\n").replace("\t", "    ")
    return "".join(map(_drawable, _UNDRAWABLE.sub("\ufffd", text)))


def _drawable(character: str) -> str:
    """The built-in font has no accents: a letter without its accent is better than an empty box."""
    plain = unicodedata.normalize("NFKD", character)[0]
    return plain if plain.isascii() and character.isalpha() else character
