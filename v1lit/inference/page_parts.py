"""What shows an answer, in HTML: image, trace and table, in which text and patches light up together.

All text is escaped, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape as escape_html
from itertools import pairwise

from PIL import Image

from v1lit.grounding.draw import PALETTE, shown_size
from v1lit.grounding.markup import OBJECT_NAME
from v1lit.grounding.patch_map import PatchMap, token_ranges
from v1lit.inference.looks import Look


@dataclass(frozen=True)
class PageContent:
    """What is shown of an answer."""

    question: str
    text: str
    answer: str | None
    looks: Sequence[Look]
    patch_maps: Sequence[PatchMap]
    """One per image."""
    pictures: Sequence[str]
    """The images as `data_url`s; none where nobody kept them."""

    @cached_property
    def looks_of(self) -> dict[int, list[int]]:
        """Of every image token that was pointed at the numbers of the looks that did."""
        found: dict[int, list[int]] = {}
        for look in self.looks:
            for token in dict.fromkeys(look.tokens):
                found.setdefault(token, []).append(look.number)
        return dict(sorted(found.items()))

    @cached_property
    def named(self) -> dict[str, int]:
        """Of every name of an object the number of the last look that it stands for."""
        return {look.name: look.number for look in self.looks if look.name}


_COLORS = "\n".join(f".c{index} {{ --c: {color}; }}" for index, color in enumerate(PALETTE))
PARTS_STYLE = f"""
{_COLORS}
.parts {{ display: flex; gap: 1.2em; flex-wrap: wrap; align-items: flex-start; }}
.parts > * {{ flex: 1 1 380px; min-width: 0; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; padding: 1em; box-sizing: border-box; }}
h2 {{ font-size: .8em; color: var(--faint); margin: .8em 0 .1em; text-transform: uppercase;
  letter-spacing: .05em; }}
h2:first-child {{ margin-top: 0; }}
p {{ margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }}
figure {{ margin: 0 0 1em; }}
figcaption, td, th {{ color: var(--faint); font-size: .85em; text-align: start; padding: .1em .6em .1em 0; }}
table {{ display: block; overflow-x: auto; width: 0; min-width: 100%; }}
svg {{ display: block; width: 100%; height: auto; max-height: 80vh; }}
svg rect {{ vector-effect: non-scaling-stroke; }}
.patch {{ fill: #fff; fill-opacity: 0; stroke: #fff; stroke-opacity: .35; cursor: pointer; outline: none; }}
.box {{ fill: none; stroke: var(--c); stroke-width: 3; pointer-events: none; }}
.tag {{ fill: #fff; stroke: var(--c); stroke-width: .35em; paint-order: stroke; font-weight: 700;
  pointer-events: none; }}
.dim .box, .dim .tag {{ opacity: .2; }}
.dim .lit .box, .dim .lit.box, .dim .lit .tag {{ opacity: 1; }}
.patch.lit {{ fill-opacity: .45; stroke-opacity: 1; stroke-width: 2; }}
.look {{ border-radius: 4px; border-bottom: 2px solid var(--c); cursor: pointer; }}
.pointer {{ display: inline-block; line-height: 1.4; font-size: .75em;
  font-variant-numeric: tabular-nums; color: var(--faint); padding: 0 .2em; }}
.look.lit, .pointer.lit {{ background: var(--c); color: #fff; }}
.look:focus-visible, .patch:focus-visible {{ outline: 3px solid var(--ink); outline-offset: 1px; }}
"""
LINKING = """
function linkUp(root) {
  const linked = "[data-look], [data-patch]";
  const words = (value) => (value || "").split(" ").filter(Boolean);
  function clear() {
    for (const one of root.querySelectorAll(".lit, .dim")) one.classList.remove("lit", "dim");
  }
  function light(element) {
    clear();
    const patch = element.dataset.patch;
    const looks = element.matches(".pointer") ? [] : words(element.dataset.look);
    for (const one of root.querySelectorAll(linked)) {
      const same = patch !== undefined && one.dataset.patch === patch;
      const whole = patch === undefined || one.dataset.patch === undefined;
      if (same || (whole && words(one.dataset.look).some((look) => looks.includes(look)))) {
        one.classList.add("lit");
      }
    }
    for (const picture of root.querySelectorAll("svg")) picture.classList.add("dim");
  }
  function follow(event) {
    const element = event.target.closest && event.target.closest(linked);
    if (element) light(element); else clear();
  }
  root.addEventListener("pointerover", follow);
  root.addEventListener("pointerleave", clear);
  root.addEventListener("focusin", follow);
  root.addEventListener("focusout", clear);
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.activeElement) { document.activeElement.blur(); clear(); }
  });
}
"""
"""A script: in `root`, what points in the text and what it points at light up together."""


def escape(text: str) -> str:
    """Text as it may stand anywhere in the page; half of a surrogate pair, which no file can hold, as `?`."""
    return escape_html(text.encode(errors="replace").decode())


def data_url(picture: Image.Image, side: int) -> str:
    """A picture as an address that holds it, with its longer side of `side` pixels at most."""
    if max(picture.size) > side:
        picture = picture.resize(shown_size(picture.size, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sections(shown: PageContent) -> str:
    """Two parts to stand side by side: the images, if there are any; question, trace, answer and looks."""
    pictures = "".join(_figure(shown, index) for index in range(len(shown.pictures)))
    answer = "" if shown.answer is None else f'<h2>Answer</h2><p dir="auto">{escape(shown.answer)}</p>'
    return (
        f"{f'<section>{pictures}</section>' if pictures else ''}\n"
        f'<section><h2>Question</h2><p dir="auto">{escape(shown.question)}</p>'
        f'<h2>Trace</h2><p dir="auto">{"".join(_words(shown))}</p>{answer}{_table(shown)}</section>'
    )


def _color(number: int) -> str:
    return f"c{(number - 1) % len(PALETTE)}"


def _figure(shown: PageContent, index: int) -> str:
    """An image, with the patches that were pointed at and the outlines of all looks."""
    width, height = shown.patch_maps[index].image_size
    name = f"Image {index + 1}, {width} x {height} pixels"
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="group" aria-label="{name}">'
        f'<image href="{shown.pictures[index]}" width="{width}" height="{height}"></image>'
        f"{''.join(_patches(shown, index))}{''.join(_outlines(shown, index))}</svg>"
        f"<figcaption>{name}</figcaption></figure>"
    )


def _patches(shown: PageContent, index: int) -> Iterator[str]:
    span, patch_map = token_ranges(shown.patch_maps)[index], shown.patch_maps[index]
    for token, looks in shown.looks_of.items():
        if token in span and patch_map.spatial[token - span.start]:
            box = patch_map.boxes[token - span.start].tolist()
            says = f"patch {token}, look {', '.join(map(str, looks))}"
            yield (
                f'<rect class="patch" {place(box)} data-patch="{token}" data-look="{_spaced(looks)}" '
                f'tabindex="0" role="button" aria-label="{says}"><title>{says}</title></rect>'
            )


def _outlines(shown: PageContent, index: int) -> Iterator[str]:
    size = max(shown.patch_maps[index].image_size) / 28
    for look in shown.looks:
        for region in (region for region in look.regions if region.image == index):
            found = region.boxes()
            boxes = [region.box] if found is None else found.tolist()
            x, y = region.box[:2]
            yield (
                f'<g class="{_color(look.number)}" data-look="{look.number}">'
                + "".join(f'<rect class="box" {place(box)}></rect>' for box in boxes)
                + f'<text class="tag" x="{x + size / 4:g}" y="{y + size:g}" font-size="{size:g}">'
                f"{look.number}</text></g>"
            )


def place(box: Sequence[float]) -> str:
    """The attributes that put a rect of an svg where a box is, `(x1, y1, x2, y2)` in pixels."""
    x1, y1, x2, y2 = box
    return f'x="{x1:g}" y="{y1:g}" width="{x2 - x1:g}" height="{y2 - y1:g}"'


def _spaced(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def _words(shown: PageContent) -> Iterator[str]:
    """The trace, with its looks and the names of their objects linked to the image."""
    ends = [0, *(end for look in shown.looks for end in (look.start, look.stop)), len(shown.text)]
    for number, (start, stop) in enumerate(pairwise(ends)):
        if number % 2:
            yield _look(shown, shown.looks[number // 2], shown.text[start:stop])
        else:
            yield from _names(shown, shown.text[start:stop])


def _names(shown: PageContent, text: str) -> Iterator[str]:
    at = 0
    for match in re.finditer(OBJECT_NAME, text):
        if match[0] in shown.named:
            yield escape(text[at : match.start()]) + _link(shown.named[match[0]], escape(match[0]))
            at = match.end()
    yield escape(text[at:])


def _look(shown: PageContent, look: Look, text: str) -> str:
    if not look.tokens:
        return _link(look.number, escape(text))
    chips = []
    for place, token in enumerate(look.tokens):
        sure = f", probability {look.probabilities[place]:.3f}" if look.probabilities else ""
        chips.append(
            f'<span class="pointer" data-patch="{token}" data-look="{look.number}" '
            f'title="patch {token}{sure}">{token}</span>'
        )
    return _link(look.number, "".join(chips))


def _link(number: int, inside: str) -> str:
    return (
        f'<span class="look {_color(number)}" data-look="{number}" tabindex="0" role="button" '
        f'aria-label="look {number}">{inside}</span>'
    )


def _table(shown: PageContent) -> str:
    if not shown.looks:
        return ""
    head = "".join(f"<th>{name}</th>" for name in ("", "object", "looked for", "patches", "sure", "entropy"))
    rows = "".join(
        f"<tr><td>{_link(look.number, str(look.number))}</td><td>{escape(look.name)}</td>"
        f'<td dir="auto">{escape(look.query)}</td><td>{len(look.tokens) or ""}</td>'
        f"<td>{_mean(look.probabilities)}</td><td>{_mean(look.entropies)}</td></tr>"
        for look in shown.looks
    )
    return f"<h2>Looks</h2><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else ""
