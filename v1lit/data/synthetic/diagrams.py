"""The `diagrams` look: boxes with a letter, connected by arrows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from itertools import permutations

from PIL import ImageDraw

from v1lit.data.synthetic.arrows import Line, arrow_between, cross, draw_arrows, passes
from v1lit.data.synthetic.questions import Turn, choose, one_search, say, two_searches, yes_no
from v1lit.data.synthetic.scene import (
    COLORS,
    INK,
    Item,
    PixelBox,
    Scene,
    corner,
    font,
    left_to_right,
    order_is_clear,
    paper,
)

LETTERS = "ABCDEFGH"
GRID = 3
"""Nodes stand in different cells of a grid of this many rows and columns."""


def draw(rng: random.Random, size: tuple[int, int]) -> Scene:
    """A diagram of `size` (width, height) pixels with 3 to 6 nodes."""
    boxes = _place(rng, rng.randint(3, 6), size)
    labels, colors = rng.sample(LETTERS, len(boxes)), rng.sample(list(COLORS), len(boxes))
    items = tuple(
        Item(f"node {label}", box, color, "node", label)
        for box, label, color in zip(boxes, labels, colors, strict=True)
    )
    arrows = _connect(rng, items)
    image = paper(rng, size, tint=6)
    image.paste(INK, (0, 0), draw_arrows(list(arrows.values()), size))
    pen = ImageDraw.Draw(image)
    letters = font(max(10, min(size) // 12))
    for item in items:
        x1, y1, x2, y2 = item.box
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=COLORS[item.color], outline=INK)
        pen.text(
            item.centre, item.label, fill="white", font=letters, anchor="mm", stroke_width=1, stroke_fill=INK
        )
    return Scene("diagrams", image, items, arrows=tuple(arrows))


def _place(rng: random.Random, count: int, size: tuple[int, int]) -> list[PixelBox]:
    cell_w, cell_h = size[0] / GRID, size[1] / GRID
    boxes = []
    for cell in rng.sample(range(GRID * GRID), count):
        w, h = round(rng.uniform(0.42, 0.6) * cell_w), round(rng.uniform(0.38, 0.5) * cell_h)
        x = round((cell % GRID + rng.uniform(0.06, 0.94 - w / cell_w)) * cell_w)
        y = round((cell // GRID + rng.uniform(0.06, 0.94 - h / cell_h)) * cell_h)
        boxes.append((x, y, x + w, y + h))
    return boxes


def _connect(rng: random.Random, items: Sequence[Item]) -> dict[tuple[int, int], Line]:
    """Straight arrows that keep clear of other boxes, cross no other arrow and are long enough to be seen."""
    arrows: dict[tuple[int, int], Line] = {}
    pairs = list(permutations(range(len(items)), 2))
    rng.shuffle(pairs)
    wanted = rng.randint(len(items) - 1, len(items) + 2)
    for a, b in pairs:
        line = arrow_between(items[a].box, items[b].box)
        if len(arrows) == wanted or line is None or (b, a) in arrows:
            continue
        others = [item for k, item in enumerate(items) if k not in (a, b)]
        if any(passes(line, o.box) for o in others) or any(cross(line, other) for other in arrows.values()):
            continue
        arrows[a, b] = line
    return arrows


def _linked(scene: Scene, item: Item, *, leaving: bool = True) -> tuple[Item, ...]:
    """The nodes that `item` points to, or else those that point to it, from left to right."""
    arrows = scene.arrows if leaving else [(b, a) for a, b in scene.arrows]
    return left_to_right([scene.items[b] for a, b in arrows if a == scene.items.index(item)])


def find(rng: random.Random, scene: Scene) -> Turn:
    """Corner, colour or letter of a node."""
    how = rng.choice(("corner", "color", "label"))
    item = choose(rng, [i for i in scene.items if how != "corner" or corner(i, scene.image.size)])
    name = f"the {item.color} node" if how == "label" else item.name
    answer = {"corner": corner(item, scene.image.size) or "", "color": item.color, "label": item.label}[how]
    question = {
        "corner": ["Where is {x}?", "In which corner is {x}?"],
        "color": ["What colour is {x}?", "Which colour does {x} have?"],
        "label": ["Which letter stands in {x}?", "What is the label of {x}?"],
    }[how]
    search = one_search(rng, name, item)
    after = say(rng, ["\n{{0}}: {a}.", "\nFor {{0}} it is {a}."], a=answer)
    return Turn(say(rng, question, x=name), (*search, after), answer)


def count(rng: random.Random, scene: Scene) -> Turn:
    """Arrows that leave a node, or end at it."""
    leaving = rng.random() < 0.5
    reach = partial(_linked, scene, leaving=leaving)
    options = [i for i in scene.items if order_is_clear(reach(i), scene.image.width)]
    wanted = choose(rng, sorted({len(reach(i)) for i in options}))
    item = rng.choice([i for i in options if len(reach(i)) == wanted])
    if leaving:
        question = rng.choice(["How many arrows leave {x}?", "How many nodes does {x} point to?"])
        query = f"nodes that {item.label} points to"
    else:
        question = rng.choice(["How many arrows end at {x}?", "How many nodes point to {x}?"])
        query = f"nodes that point to {item.label}"
    last = say(rng, ["\nThat makes {n}.", "\nI count {n}."], n=wanted)
    steps = (*two_searches(rng, item.name, (item,), query, reach(item)), last)
    return Turn(question.format(x=item.name), steps, str(wanted))


def compare(rng: random.Random, scene: Scene) -> Turn:
    """From which of two nodes more arrows leave, or whether they do."""
    clear = [i for i in scene.items if order_is_clear(_linked(scene, i), scene.image.width)]
    pairs = [p for p in permutations(clear, 2) if len(_linked(scene, p[0])) > len(_linked(scene, p[1]))]
    pair = choose(rng, pairs)
    if rng.random() < 0.5:
        a, b = rng.sample(pair, 2)
        question = rng.choice(
            ["Which node has more arrows leaving it, {a} or {b}?", "Do more arrows leave {a} or {b}?"]
        )
        answer = pair[0].label
    else:
        answer = yes_no(rng)
        a, b = pair if answer == "yes" else pair[::-1]
        question = rng.choice(
            ["Do more arrows leave {a} than {b}?", "Does {a} point to more nodes than {b}?"]
        )
    found = _linked(scene, a), _linked(scene, b)
    queries = [f"nodes that {i.label} points to" for i in (a, b)]
    last = say(rng, ["\n{m} against {n}.", "\nThat is {m} and {n}."], m=len(found[0]), n=len(found[1]))
    steps = (*two_searches(rng, queries[0], found[0], queries[1], found[1]), last)
    return Turn(question.format(a=a.label, b=b.label), steps, answer)


def relate(rng: random.Random, scene: Scene) -> Turn:
    """To which nodes one points, or whether it points to another."""
    return _name_targets(rng, scene) if rng.random() < 0.5 else _points_to(rng, scene)


def _name_targets(rng: random.Random, scene: Scene) -> Turn:
    item = choose(rng, [i for i in scene.items if order_is_clear(_linked(scene, i), scene.image.width)])
    found = _linked(scene, item)
    answer = ", ".join(i.label for i in found) or "none"
    question = say(
        rng,
        [
            "Which nodes does {x} point to, from left to right?",
            "Name the nodes that {x} points to, from left to right.",
        ],
        x=item.label,
    )
    query = f"nodes that {item.label} points to"
    steps = (*two_searches(rng, item.name, (item,), query, found), f"\nI read {answer}.")
    return Turn(question, steps, answer)


def _points_to(rng: random.Random, scene: Scene) -> Turn:
    answer = yes_no(rng)
    pairs = [p for p in permutations(scene.items, 2) if (p[1] in _linked(scene, p[0])) == (answer == "yes")]
    a, b = choose(rng, pairs)
    question = say(
        rng, ["Does {a} point to {b}?", "Is there an arrow from {a} to {b}?"], a=a.label, b=b.label
    )
    last = f"\nAn arrow from {{0}} to {{1}}: {answer}."
    return Turn(question, (*two_searches(rng, a.name, (a,), b.name, (b,)), last), answer)
