"""The task `total`: read some bars and add what they show.

A bar fills a part of a frame, and the region is the whole frame: its size says nothing about the value.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import product

from PIL import ImageDraw

from v1lit.data.synthetic.questions import NoQuestionError, Search, Turn, say
from v1lit.data.synthetic.scene import COLORS, INK, Item, Scene, font, paper

HIGHEST = 5
"""Bars show whole numbers from 1 to this."""


def make(rng: random.Random, size: tuple[int, int], difficulty: Mapping[str, int]) -> tuple[Scene, Turn]:
    """A chart of `objects` bars, of which `steps` are read; every total is as likely as any other."""
    count, steps = difficulty["objects"], difficulty["steps"]
    if steps > count:
        raise NoQuestionError
    wanted = rng.randint(steps, steps * HIGHEST)
    read = rng.choice([v for v in product(range(1, HIGHEST + 1), repeat=steps) if sum(v) == wanted])
    values = [*read, *(rng.randint(1, HIGHEST) for _ in range(count - steps))]
    colors = rng.sample(list(COLORS), count)
    scene = _draw(rng, size, rng.sample(list(zip(colors, values, strict=True)), count))
    items = [next(item for item in scene.items if item.color == color) for color in colors[:steps]]
    return scene, _ask(rng, items, list(read))


def _draw(rng: random.Random, size: tuple[int, int], bars: list[tuple[str, int]]) -> Scene:
    width, height = size
    left, right = round(0.12 * width), width - 4
    top, bottom = round(0.06 * height), height - round(0.06 * height)
    image = paper(rng, size, tint=5)
    pen = ImageDraw.Draw(image)
    letters = font(max(9, min(size) // 15))
    for value in range(HIGHEST + 1):
        y = _level(value, top, bottom)
        pen.line((left - 3, y, right, y), fill=(170, 170, 176))
        pen.text((left - 6, y), str(value), fill=INK, font=letters, anchor="rm")
    bar_space = (right - left) / len(bars)
    items = []
    for k, (color, value) in enumerate(bars):
        bar = round(min(0.6 * bar_space, width / 8))
        x = round(left + bar_space * (k + 0.5) - bar / 2)
        box = (x, top, x + bar, bottom + 1)
        pen.rectangle((x, top, x + bar - 1, bottom), fill="white", outline=INK)
        filled = (x + 1, _level(value, top, bottom) + 1, x + bar - 2, bottom - 1)
        pen.rectangle(filled, fill=COLORS[color])
        items.append(Item(f"{color} bar", box, color, "bar", value=value))
    return Scene("total", image, tuple(items), gridlines=tuple(float(v) for v in range(1, HIGHEST + 1)))


def _level(value: float, top: int, bottom: int) -> int:
    """The pixel row at which a value stands."""
    return bottom - round(value / HIGHEST * (bottom - top))


def _ask(rng: random.Random, items: list[Item], values: list[int]) -> Turn:
    names = [f"the {item.name}" for item in items]
    if len(items) == 1:
        question = say(rng, ["What is the height of {x}?", "How high is {x}?"], x=names[0])
    else:
        listed = f"{', '.join(names[:-1])} and {names[-1]}"
        question = say(rng, ["What is the total of {x}?", "How much do {x} add up to?"], x=listed)
    parts: list[str | Search] = []
    total = 0
    for k, (item, name, value) in enumerate(zip(items, names, values, strict=True)):
        before = f"I look for {name}. " if k == 0 else f" Now {name}. "
        total += value
        made = f", together {total}" if k else ""
        parts += [before, Search(name, (item,)), f"\n{{{k}}} is at {value}{made}."]
    return Turn(question, tuple(parts), str(total))
