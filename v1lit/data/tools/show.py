"""Looking at examples: image, regions, conversation and what is learned of it, as a page or a picture."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from v1lit.data.example import Example
from v1lit.data.images import decode_image
from v1lit.data.shards import INDEX_NAME, Shard, list_shards
from v1lit.data.tools.show_page import GREY, INK, RED, Card, TextRun, render_html, render_png
from v1lit.files import write_atomically
from v1lit.grounding.draw import draw_regions
from v1lit.grounding.region import Region
from v1lit.grounding.trace import parse_trace
from v1lit.paths import expand_path

if TYPE_CHECKING:
    from v1lit.backbones.processor import Processor
    from v1lit.data.config import EncodingConfig

PALETTE = (
    "#c1121f",
    "#0057d9",
    "#0a7d33",
    "#8f2bbd",
    "#b85c00",
    "#007c89",
    "#c2187a",
    "#5a6b00",
    "#5b4bd6",
    "#7a4a2b",
)
"""Colours of regions, in order, again from the start after the last; all dark enough to be read on white."""
RENDERERS = {".html": render_html, ".htm": render_html, ".png": render_png}
IMAGE_SIDE = 448
"""Longer side of a picture on the page, in pixels."""


def show(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    n: int = 8,
    processor: Processor | None = None,
    encoding: EncodingConfig | None = None,
    seed: int = 0,
) -> Path:
    """Draw `n` examples of a folder of shards, or of one shard, to the file `out`; returns its path.

    Args:
        source: a folder with shards, or a `.tar` file. Of a folder with splits, `train` is shown.
        out: `.html` for a self-contained page, `.png` for one picture.
        n: how many examples, chosen by `seed` and shown in the order of the shards.
        processor: if not None, every example is encoded as well and its tokens are shown, coloured by whether
            the loss learns them.
        encoding: how to encode; the defaults if None.
        seed: chooses the examples.

    Raises ValueError for another suffix than those two, a source without examples, or n below 1.
    """
    out, source = _checked_out(out), expand_path(source)
    if n < 1:
        raise ValueError(f"n is {n}; at least 1 example is needed")
    source = Path(source)
    if (source / "train" / INDEX_NAME).is_file() and not (source / INDEX_NAME).is_file():
        source /= "train"
    cards = [_card(shard, index, processor, encoding) for shard, index in _pick(source, n, seed)]
    return _write(out, f"{source}: {len(cards)} examples", cards)


def show_rows(
    rows: Iterable[Example | str],
    out: str | os.PathLike[str],
    *,
    title: str,
    processor: Processor | None = None,
    encoding: EncodingConfig | None = None,
) -> Path:
    """Draw examples that are in no shard yet to the file `out`, as `show` does; returns its path.

    Args:
        rows: examples, or why there is none.
        out, processor, encoding: as of `show`.
        title: of the page.

    Raises ValueError for another suffix than .html and .png.
    """
    out = _checked_out(out)
    cards = []
    for row in rows:
        if isinstance(row, Example):
            cards.append(_card_of(row, "", processor, encoding))
        else:
            cards.append(Card(title="rejected", subtitle="", sections=[("", [TextRun(row, color=RED)])]))
    return _write(out, f"{title}: {len(cards)} rows", cards)


def _checked_out(out: str | os.PathLike[str]) -> Path:
    path = Path(expand_path(out))
    if path.suffix.lower() not in RENDERERS:
        raise ValueError(f"{out} ends in {path.suffix or 'no suffix'!r}; allowed: .html, .png")
    return path


def _write(out: Path, title: str, cards: list[Card]) -> Path:
    page = RENDERERS[out.suffix.lower()](title, cards)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page)
    return out


def _pick(source: Path, n: int, seed: int) -> Iterator[tuple[Shard, int]]:
    """Shards, opened, and numbers of `n` of their examples; only the shards that hold them are opened."""
    counts = _counts(source)
    total = sum(counts.values())
    if total == 0:
        raise ValueError(f"{source} holds no examples")
    chosen = sorted(random.Random(seed).sample(range(total), min(n, total)))
    start = 0
    for path, count in counts.items():
        in_shard = [position - start for position in chosen if start <= position < start + count]
        start += count
        if in_shard:
            with Shard(path) as shard:
                yield from ((shard, index) for index in in_shard)


def _counts(source: Path) -> dict[Path, int]:
    """Examples in every shard: as the folder's index says, or as counted in a single shard."""
    if not source.exists():
        raise ValueError(f"{source} does not exist; give a folder of shards or a .tar file")
    if source.is_dir():
        return {source / info.file: info.examples for info in list_shards(source)}
    with Shard(source) as shard:
        return {source: len(shard)}


def _card(shard: Shard, index: int, processor: Processor | None, encoding: EncodingConfig | None) -> Card:
    try:
        return _card_of(shard.example(index), shard.path.name, processor, encoding)
    except ValueError as error:
        card = Card(title=shard.keys[index], subtitle=shard.path.name)
        card.sections.append(("unreadable", [TextRun(str(error), color=RED)]))
        return card


def _card_of(
    example: Example, place: str, processor: Processor | None, encoding: EncodingConfig | None
) -> Card:
    images = [decode_image(image) for image in example.images]
    card = Card(title=example.id, subtitle=place)
    colors = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(example.regions)}
    details = (example.source, ", ".join(f"{w} x {h}" for w, h in (i.size for i in images)), place)
    card.subtitle = " · ".join(filter(None, details))
    card.images = [with_regions(image, k, example.regions, colors) for k, image in enumerate(images)]
    for message in example.messages:
        card.sections.append((message.role, color_names(message.content, colors)))
    if processor is not None:
        card.sections.append(("tokens", _token_pieces(example, processor, encoding, colors)))
    return card


def with_regions(
    image: Image.Image,
    index: int,
    regions: Mapping[str, Region],
    colors: Mapping[str, str],
    side: int = IMAGE_SIDE,
) -> Image.Image:
    """The image with its longer side of that many pixels, and with the regions that lie in it."""
    mine = {name: region for name, region in regions.items() if region.image == index}
    return draw_regions(
        image,
        list(mine.values()),
        labels=["".join(filter(str.isdigit, name)) or name for name in mine],
        colors=[colors[name] for name in mine],
        side=side,
    )


def color_names(text: str, colors: Mapping[str, str]) -> list[TextRun]:
    """The text in pieces; region names, and the `<obj>` names that stand on them, have their colour."""
    mine = {name: color for name, color in colors.items() if name in text}
    for call in parse_trace(text).trace.calls:
        for target in call.objects:
            if target.name and target.region is not None and target.region in colors:
                mine[target.name] = colors[target.region]
    if not mine:
        return [TextRun(text)]
    cuts = re.split(
        "(" + "|".join(re.escape(name) for name in sorted(mine, key=len, reverse=True)) + ")", text
    )
    return [TextRun(cut, color=mine.get(cut, INK), bold=cut in mine) for cut in cuts if cut]


def _token_pieces(
    example: Example, processor: Processor, encoding: EncodingConfig | None, colors: Mapping[str, str]
) -> list[TextRun]:
    # Encoding needs torch; pages without tokens do not.
    from v1lit.data.config import EncodingConfig
    from v1lit.data.encode.encoding import encode
    from v1lit.labels import IGNORE

    try:
        encoded = encode(example, processor, encoding or EncodingConfig())
    except ValueError as error:
        return [TextRun(f"cannot be encoded: {error}", color=RED)]
    ids = [int(token) for token in encoded.input_ids.tolist()]
    learned = [label != IGNORE for label in encoded.labels.tolist()]
    spans = {k: colors[span.name] for span in encoded.regions for k in range(span.start, span.stop)}
    end = _end_id(ids, processor)
    pointers = sum(processor.pointer_start <= token < end for token in ids)
    summary = f"{len(ids)} tokens, {sum(learned)} learned, {pointers} pointers"
    notes = [f"{encoded.cut} tokens cut from the end"] if encoded.cut else []
    notes += [f"no image token sees {', '.join(encoded.unseen)}"] if encoded.unseen else []
    return [
        TextRun(summary + "\n", color=GREY),
        *[TextRun(note + "\n", color=RED) for note in notes],
        *token_pieces(ids, learned, processor, spans),
    ]


def token_pieces(
    ids: Sequence[int], learned: Sequence[bool], processor: Processor, colors: Mapping[int, str] | None = None
) -> list[TextRun]:
    """One piece per token, marked `prompt`, `learned`, `pointer` or `given pointer`.

    A run of image tokens is one piece `[image: 36 tokens]`; so are tokens that make a character together. A
    pointer that ends a run is `[end]`.
    `colors` holds the text colour of pointers by their position.
    """
    pieces: list[TextRun] = []
    run_end = _end_id(ids, processor)
    at = 0
    while at < len(ids):
        end = at + 1
        if ids[at] == processor.image_token_id:
            while end < len(ids) and ids[end] == ids[at]:
                end += 1
            pieces.append(TextRun(f"[image: {end - at} tokens]", mark="image"))
        elif ids[at] >= processor.pointer_start:
            mark = "pointer" if learned[at] else "given pointer"
            color = (colors or {}).get(at, INK)
            text = "[end]" if ids[at] == run_end else processor.decode(ids[at:end])
            pieces.append(TextRun(text, color=color, mark=mark))
        else:
            # A character can be several tokens; alone, each decodes to the replacement character.
            while "\ufffd" in processor.decode(ids[at:end]) and end < min(at + 8, len(ids)):
                if ids[end] >= processor.pointer_start or learned[end] != learned[at]:
                    break
                end += 1
            pieces.append(TextRun(processor.decode(ids[at:end]), mark="learned" if learned[at] else "prompt"))
        at = end
    return pieces


def _end_id(ids: Sequence[int], processor: Processor) -> int:
    """The id behind the pointers to all image tokens of a sequence: that of the end of a run."""
    return processor.pointer_start + ids.count(processor.image_token_id)
