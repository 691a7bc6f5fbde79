"""The `bars` look: a bar chart with an axis of numbers and a labelled, coloured bar for each category."""

from __future__ import annotations

import random
from itertools import permutations

from PIL import ImageDraw

from v1lit.data.synthetic.questions import Search, Turn, one_search, say, two_searches, yes_no
from v1lit.data.synthetic.scene import COLORS, INK, Item, Scene, font, left_to_right, paper

LETTERS = (("A", "B", "C", "D", "E", "F"), ("P", "Q", "R", "S", "T", "U"))
LABELS = (("Mon", "Tue", "Wed", "Thu", "Fri"), ("Jan", "Feb", "Mar", "Apr", "May"), *LETTERS)
STEPS = (1, 2, 5, 10, 20)
CLEAR = 0.3
"""Two bars, or a bar and a gridline, differ by at least this share of the distance between gridlines."""


def draw(rng: random.Random, size: tuple[int, int]) -> Scene:
    """A chart of `size` (width, height) pixels with 3 to 6 bars."""
    width, height = size
    step, lines, count = rng.choice(STEPS), rng.randint(3, 5), rng.randint(3, 6)
    values = _values(rng, count, lines, step)
    gridlines = tuple(float(k * step) for k in range(1, lines + 1))
    letters = font(max(9, min(size) // 15))
    left, right = round(0.15 * width), width - 4
    top, bottom = round(0.06 * height), height - round(0.12 * height)
    image = paper(rng, size, tint=5)
    pen = ImageDraw.Draw(image)

    def level(value: float) -> int:
        return bottom - round(value / gridlines[-1] * (bottom - top))

    for value in (0.0, *gridlines):
        pen.line((left, level(value), right, level(value)), fill=(170, 170, 176))
        pen.text((left - 3, level(value)), f"{value:g}", fill=INK, font=letters, anchor="rm")
    bar_space = (right - left) / count
    bar = round(bar_space * rng.uniform(0.5, 0.75))
    names = list(rng.choice(LABELS if count <= 5 else LETTERS))  # words do not fit under six bars
    names = names[:count] if rng.random() < 0.5 else rng.sample(names, count)
    items = []
    for k, (label, color) in enumerate(zip(names, rng.sample(list(COLORS), count), strict=True)):
        x = round(left + bar_space * (k + 0.5) - bar / 2)
        box = (x, level(values[k]), x + bar, bottom)
        pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=COLORS[color])
        pen.text((x + bar / 2, bottom + 3), label, fill=INK, font=letters, anchor="mt")
        items.append(Item(f"bar of {label}", box, color, "bar", label, values[k]))
    pen.line((left, top, left, bottom), fill=INK)
    pen.line((left, bottom, right, bottom), fill=INK)
    return Scene("bars", image, tuple(items), gridlines=gridlines)


def _values(rng: random.Random, count: int, lines: int, step: int) -> list[float]:
    values: list[float] = []
    while len(values) < count:
        value = (rng.randrange(lines) + rng.uniform(CLEAR, 1 - CLEAR)) * step
        if all(abs(value - other) >= CLEAR * step for other in values):
            values.append(value)
        elif rng.random() < 0.05:  # no room left: begin again
            values = []
    return values


def find(rng: random.Random, scene: Scene) -> Turn:
    """Label or colour of a bar that is named, or the label of the tallest or shortest."""
    return rng.choice((_find_named, _find_extreme))(rng, scene)


def _find_named(rng: random.Random, scene: Scene) -> Turn:
    """From label to colour, or from colour to label."""
    item = rng.choice(scene.items)
    if rng.random() < 0.5:
        name, answer = f"the {item.name}", item.color
        question = rng.choice(["What colour is {x}?", "Which colour does {x} have?"])
    else:
        name, answer = f"the {item.color} bar", item.label
        question = rng.choice(["What is the label of {x}?", "Which label stands under {x}?"])
    steps = (*one_search(rng, name, item), say(rng, ["\n{{0}} is {a}.", "\n{{0}}: {a}."], a=answer))
    return Turn(question.format(x=name), steps, answer)


def _find_extreme(rng: random.Random, scene: Scene) -> Turn:
    word, pick = rng.choice((("tallest", max), ("shortest", min)))
    item = pick(scene.items, key=lambda i: i.value)
    question = say(rng, ["Which bar is the {w}?", "What is the label of the {w} bar?"], w=word)
    search = one_search(rng, f"the {word} bar", item)
    after = say(rng, ["\n{{0}} is {a}.", "\nUnder {{0}} I read {a}."], a=item.label)
    return Turn(question, (*search, after), item.label)


def count(rng: random.Random, scene: Scene) -> Turn:
    """Bars that are higher or lower than a gridline."""
    options = []
    for line in scene.gridlines:
        options.append((f"higher than {line:g}", [i for i in scene.items if i.value > line]))
        options.append((f"lower than {line:g}", [i for i in scene.items if i.value < line]))
    wanted = rng.choice(sorted({len(members) for _, members in options}))
    words, members = rng.choice([o for o in options if len(o[1]) == wanted])
    name = f"bars {words}"
    question = rng.choice(["How many bars are {w}?", "Count the bars {w}.", "How many bars do you see {w}?"])
    before = say(rng, ["I look for {x}. ", "Let me mark the {x}. "], x=name)
    after = say(rng, ["\nThat makes {n}.", "\nI count {n}."], n=len(members))
    steps = (before, Search(name, left_to_right(members)), after)
    return Turn(question.format(w=words), steps, str(len(members)))


def compare(rng: random.Random, scene: Scene) -> Turn:
    """Which of two bars is taller or shorter, or whether one is."""
    a, b = rng.sample(scene.items, 2)
    word = rng.choice(("taller", "shorter"))
    winner, loser = (a, b) if (a.value > b.value) == (word == "taller") else (b, a)
    if rng.random() < 0.5:
        question = rng.choice(["Which bar is {w}, {a} or {b}?", "Is {a} or {b} the {w} bar?"])
        answer = winner.label
    else:
        answer = yes_no(rng)
        a, b = (winner, loser) if answer == "yes" else (loser, winner)
        question = rng.choice(["Is the bar of {a} {w} than the bar of {b}?", "Is {a} {w} than {b}?"])
    last = f"\n{{{(a, b).index(winner)}}} is {word}."
    steps = (*two_searches(rng, f"the {a.name}", (a,), f"the {b.name}", (b,)), last)
    return Turn(question.format(w=word, a=a.label, b=b.label), steps, answer)


def relate(rng: random.Random, scene: Scene) -> Turn:
    """Whether a bar stands left or right of another."""
    pair = a, b = rng.choice(list(permutations(scene.items, 2)))
    true_word, false_word = ("left of", "right of") if a.centre < b.centre else ("right of", "left of")
    answer = yes_no(rng)
    word = true_word if answer == "yes" else false_word
    names = [f"the {i.color} bar" for i in pair] if rng.random() < 0.5 else [f"the {i.name}" for i in pair]
    question = say(rng, ["Is {a} {w} {b}?", "Does {a} stand {w} {b}?"], a=names[0], b=names[1], w=word)
    last = f"\n{{0}} is {true_word} {{1}}."
    return Turn(question, (*two_searches(rng, names[0], (a,), names[1], (b,)), last), answer)
