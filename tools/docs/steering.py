"""The picture of docs/steering.md: what a trained tiny model says without each rule, and with it.

    lightning run recipes/tiny_qwen.yaml --run.name=first
    python tools/docs/steering.py runs/first/model docs/images/steering.png [--about runs/about/model]

Both answers of a rule are made alike, sampled ones from the same seed; nothing is chosen by hand but scenes,
questions and seeds. `--about` adds a question about a region, for a model that was trained on such questions,
as docs/steering.md shows.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

import v1lit
from v1lit.data.synthetic import make_scene
from v1lit.files import aside
from v1lit.grounding.draw import draw_regions
from v1lit.grounding.markup import POINTER, POINTER_BEGIN
from v1lit.inference.prediction import Prediction

SIDE, GAP, COLUMNS, LINES, WIDTH = 168, 12, 3, 8, 47
"""Of a scene and between things, in pixels; cells of a row; lines of an answer, and their letters."""
INK, FAINT, GIVEN = "#212529", "#868e96", "#212529"
_RUN = re.compile(rf"(?:{POINTER.pattern})+")
_NUMBER = re.compile(rf"{re.escape(POINTER_BEGIN)}(\d+)")
SAMPLED = {"do_sample": True, "temperature": 1.6}


@dataclass(frozen=True)
class Case:
    """A rule, and what is asked to see it."""

    name: str
    steer: v1lit.Steering
    question: str = "Where is the purple triangle?"
    how: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    shown: Sequence[tuple[float, float, float, float]] = ()
    """Boxes that the rule is about."""
    tokens: int = 96


RIGHT, SQUARE = (84, 0, 168, 168), (51, 117, 100, 166)
SQUARES, BOTH = "Where is the purple square?", "Is the yellow circle left of the purple triangle?"
CASES = (
    Case("inside=[right half]", v1lit.Steering(inside=[RIGHT]), SQUARES, shown=[RIGHT]),
    Case("outside=[a square]", v1lit.Steering(outside=[SQUARE]), SQUARES, shown=[SQUARE]),
    Case("points=False", v1lit.Steering(points=False)),
    Case("max_looks=1", v1lit.Steering(max_looks=1), BOTH),
    Case("max_pointers=2", v1lit.Steering(max_pointers=2)),
    Case("connected=True", v1lit.Steering(connected=True), how=SAMPLED, seed=1),
    Case("distinct=True", v1lit.Steering(distinct=True), how=SAMPLED, seed=10),
    Case("once=True", v1lit.Steering(once=True), "Which is left of the purple triangle?"),
    Case("grammar=True", v1lit.Steering(grammar=True), how=SAMPLED, seed=7),
    Case("look_every=10", v1lit.Steering(look_every=10)),
    Case('queries=["the yellow circle"]', v1lit.Steering(queries=["the yellow circle"])),
)


def main(argv: Sequence[str]) -> int:
    """Draw the picture; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--about", help="a model that was trained on questions about regions")
    options = parser.parse_args(argv)
    predictor = v1lit.load(options.model, device="cpu")
    cells = [cell(predictor, case) for case in CASES]
    if options.about:
        cells.append(about_regions(v1lit.load(options.about, device="cpu")))
    with aside(options.out) as unfinished:
        page(cells).quantize(64).save(unfinished, "PNG", optimize=True)
    return 0


def cell(predictor: v1lit.Predictor, case: Case) -> Image.Image:
    """What is said without a rule, and with it."""
    image = make_scene(random.Random(0)).image
    made = []
    for steer in (None, case.steer):
        torch.manual_seed(case.seed)
        answer = predictor(image, case.question, case.tokens, steer=steer, **case.how)
        given = [v1lit.Region.from_box(box) for box in (case.shown if steer else ())]
        made.append((answer, given))
    how = f", temperature {case.how['temperature']}" if case.how else ""
    return joined(case.name, f"{case.question}{how}", ["without", "with"], made)


def about_regions(predictor: v1lit.Predictor) -> Image.Image:
    """What is said of two regions that somebody gives."""
    scene = make_scene(random.Random(0))
    question, made = "What is <|region_1|>?", []
    for item in scene.items[:2]:
        regions = [v1lit.Region.from_box(item.box)]
        made.append((predictor(scene.image, question, 32, regions=regions), regions))
    return joined("regions=[a box]", question, ["one box", "another"], made)


def joined(
    name: str, question: str, kinds: Sequence[str], made: Sequence[tuple[Prediction, list[v1lit.Region]]]
) -> Image.Image:
    """A rule with its answers, side by side."""
    wide = 2 * SIDE + GAP
    picture = Image.new("RGB", (wide, 46 + SIDE + 2 * LINES * 12 + 50), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((0, 0), name, INK, ImageFont.load_default(16))
    draw.text((0, 22), question, FAINT, ImageFont.load_default(12))
    top = 46 + SIDE + 6
    for number, (kind, (answer, given)) in enumerate(zip(kinds, made, strict=True)):
        scene = draw_regions(answer.draw(), given, colors=[GIVEN]) if given else answer.draw()
        picture.paste(scene.resize((SIDE, SIDE)), (number * (SIDE + GAP), 42))
        draw.text((0, top), kind, FAINT, ImageFont.load_default(11))
        for line in spoken(answer):
            draw.text((46, top), line, INK, ImageFont.load_default(11))
            top += 13
        top += 6
    return picture.crop((0, 0, wide, top))


def spoken(answer: Prediction) -> list[str]:
    """The lines of an answer, runs of pointers in short."""
    text = _RUN.sub(lambda run: f"{{{' '.join(_NUMBER.findall(run[0]))}}}", answer.text)
    lines = wrap(text.replace("\n", " "), WIDTH) or [""]
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], f"{lines[LINES - 1][: WIDTH - 2]} …"]


def page(cells: Sequence[Image.Image]) -> Image.Image:
    """All cells, row by row."""
    rows = [cells[at : at + COLUMNS] for at in range(0, len(cells), COLUMNS)]
    step, heights = cells[0].width + 3 * GAP, [max(one.height for one in row) for row in rows]
    size = COLUMNS * step + GAP, sum(heights) + (len(rows) + 2) * GAP
    picture, down = Image.new("RGB", size, "white"), 2 * GAP
    for row, high in zip(rows, heights, strict=True):
        for right, one in enumerate(row):
            picture.paste(one, (2 * GAP + right * step, down))
        down += high + GAP
    return picture


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
