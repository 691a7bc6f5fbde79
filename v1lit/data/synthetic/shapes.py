"""The `shapes` look: 2 to 5 circles, squares and triangles in six colours, anywhere, never overlapping."""

from __future__ import annotations

import random
from functools import lru_cache
from itertools import combinations, permutations

from PIL import Image, ImageDraw

from v1lit.data.synthetic.questions import NoQuestionError, Search, Turn, choose, say, two_searches, yes_no
from v1lit.data.synthetic.scene import (
    CLEAR_SHARE,
    COLORS,
    Item,
    PixelBox,
    Scene,
    corner,
    left_to_right,
    order_is_clear,
    paper,
)

SHAPES = ("circle", "square", "triangle")
AREA = {"circle": 0.785, "square": 1.0, "triangle": 0.5}
"""Drawn share of the box."""
SIDE_SHARE = (0.2, 0.36)
"""Smallest and largest side of an object, as shares of the image's shorter side."""
GAP = 2
"""Free pixels kept between two objects."""
OVERSAMPLE = 4


def draw(rng: random.Random, size: tuple[int, int]) -> Scene:
    """A scene of `size` (width, height) pixels."""
    boxes = _place(rng, rng.randint(2, 5), size)
    items = []
    for box in boxes:
        color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
        items.append(Item(f"{color} {shape}", box, color, shape))
    image = paper(rng, size)
    for item in items:
        x1, y1, x2, _ = item.box
        image.paste(COLORS[item.color], (x1, y1), mask(item.shape, x2 - x1))
    return Scene("shapes", image, tuple(items))


def _place(rng: random.Random, count: int, size: tuple[int, int]) -> list[PixelBox]:
    low, high = (round(share * min(size)) for share in SIDE_SHARE)
    boxes: list[PixelBox] = []
    while len(boxes) < count:
        boxes = []
        for _ in range(40 * count):
            side = rng.randint(low, high)
            x, y = rng.randint(0, size[0] - side), rng.randint(0, size[1] - side)
            if all(_apart((x, y, x + side, y + side), other) for other in boxes):
                boxes.append((x, y, x + side, y + side))
            if len(boxes) == count:
                break
    return boxes


def _apart(a: PixelBox, b: PixelBox) -> bool:
    return a[2] + GAP <= b[0] or b[2] + GAP <= a[0] or a[3] + GAP <= b[1] or b[3] + GAP <= a[1]


@lru_cache(maxsize=1024)
def mask(shape: str, side: int) -> Image.Image:
    """Coverage of a shape that touches all four sides of its box: [side, side], 0..255, smooth edges."""
    big = side * OVERSAMPLE
    drawn = Image.new("L", (big, big), 0)
    pen = ImageDraw.Draw(drawn)
    if shape == "circle":
        pen.ellipse((0, 0, big - 1, big - 1), fill=255)
    elif shape == "square":
        pen.rectangle((0, 0, big - 1, big - 1), fill=255)
    elif shape == "diamond":
        pen.polygon([(0, big // 2), (big // 2, 0), (big - 1, big // 2), (big // 2, big - 1)], fill=255)
    else:
        pen.polygon([(0, big - 1), (big - 1, big - 1), (big // 2, 0)], fill=255)
    return drawn.reduce(OVERSAMPLE)


def _single(scene: Scene) -> list[Item]:
    """Items whose colour and shape together occur once."""
    names = [item.name for item in scene.items]
    return [item for item in scene.items if names.count(item.name) == 1]


def find(rng: random.Random, scene: Scene) -> Turn:
    """In which corner a shape lies."""
    item = choose(rng, [i for i in _single(scene) if corner(i, scene.image.size)])
    name, word = f"the {item.name}", str(corner(item, scene.image.size))
    question = rng.choice(
        ["Where is {x}?", "In which corner is {x}?", "Find {x}. Where is it?", "Which corner is {x} in?"]
    )
    before, after = rng.choice(
        [
            ("I look for {x}. ", "\n{{0}} is in the {w}."),
            ("Let me find {x}. ", "\n{{0}} lies {w}."),
            ("Where is {x}? ", "\nI see {{0}} at the {w}."),
        ]
    )
    steps = (before.format(x=name), Search(name, (item,)), after.format(w=word))
    return Turn(question.format(x=name), steps, word)


def _groups(scene: Scene) -> list[tuple[str, tuple[Item, ...]]]:
    """Groups with a name of one word whose members have one order from left to right; some are empty."""
    groups = [(f"{color} objects", [i for i in scene.items if i.color == color]) for color in COLORS]
    groups += [(f"{shape}s", [i for i in scene.items if i.shape == shape]) for shape in SHAPES]
    width = scene.image.width
    return [(name, left_to_right(items)) for name, items in groups if order_is_clear(items, width)]


def count(rng: random.Random, scene: Scene) -> Turn:
    """Shapes of one colour, or of one kind."""
    groups = _groups(scene)
    wanted = choose(rng, sorted({len(members) for _, members in groups}))
    if wanted == 0 and rng.random() < 0.6:  # an empty group is nearly always there
        raise NoQuestionError
    name, members = rng.choice([g for g in groups if len(g[1]) == wanted])
    question = rng.choice(
        [
            "How many {x} are there?",
            "Count the {x}.",
            "How many {x} do you see?",
            "What is the number of {x}?",
        ]
    )
    before = say(rng, ["I look for {x}. ", "Let me mark the {x}. ", "I count the {x}. "], x=name)
    after = say(rng, ["\nThat makes {n}.", "\nI count {n}.", "\nI see {n}."], n=len(members))
    return Turn(question.format(x=name), (before, Search(name, members), after), str(len(members)))


def compare(rng: random.Random, scene: Scene) -> Turn:
    """Sizes of two shapes, or numbers of two groups."""
    return _compare_sizes(rng, scene) if rng.random() < 0.5 else _compare_groups(rng, scene)


def _clearly_larger(a: Item, b: Item) -> bool:
    """Larger both by the side of the box and by the drawn area, so that every reading of "larger" agrees."""
    side_a, side_b = a.box[2] - a.box[0], b.box[2] - b.box[0]
    return side_a >= 1.15 * side_b and AREA[a.shape] * side_a**2 >= 1.2 * AREA[b.shape] * side_b**2


def _compare_sizes(rng: random.Random, scene: Scene) -> Turn:
    pair = choose(rng, [p for p in permutations(_single(scene), 2) if _clearly_larger(*p)])
    word, winner = rng.choice([("larger", pair[0]), ("smaller", pair[1])])
    first, second = rng.sample(pair, 2)
    a, b = f"the {first.name}", f"the {second.name}"
    question = rng.choice(
        ["Which is {w}, {a} or {b}?", "Which one is {w}: {a} or {b}?", "Is {a} or {b} the {w} one?"]
    )
    index = (first, second).index(winner)
    last = say(rng, ["\n{{{i}}} is {w}.", "\nOf the two, {{{i}}} is {w}."], i=index, w=word)
    steps = (*two_searches(rng, a, (first,), b, (second,)), last)
    return Turn(question.format(w=word, a=a, b=b), steps, f"the {winner.name}")


def _compare_groups(rng: random.Random, scene: Scene) -> Turn:
    pairs_of_groups = permutations(_groups(scene), 2)
    same_sort = [p for p in pairs_of_groups if p[0][0].endswith("objects") == p[1][0].endswith("objects")]
    answer = yes_no(rng)
    pairs = [
        p for p in same_sort if (len(p[0][1]) > len(p[1][1])) == (answer == "yes") and (p[0][1] or p[1][1])
    ]
    (a, many), (b, few) = choose(rng, [p for p in pairs if p[0][1] and p[1][1]] or pairs)
    question = rng.choice(
        ["Are there more {a} than {b}?", "Do you see more {a} than {b}?", "Do the {a} outnumber the {b}?"]
    )
    last = rng.choice(["\n{m} against {n}, so {y}.", "\nThat is {m} and {n}: {y}."])
    steps = (*two_searches(rng, a, many, b, few), last.format(m=len(many), n=len(few), y=answer))
    return Turn(question.format(a=a, b=b), steps, answer)


def relate(rng: random.Random, scene: Scene) -> Turn:
    """Whether a shape lies beside, above or below another."""
    choices = [
        (a, b, axis)
        for a, b in combinations(_single(scene), 2)
        for axis in (0, 1)
        if abs(a.centre[axis] - b.centre[axis]) >= 2 * CLEAR_SHARE * scene.image.size[axis]
    ]
    first, second, axis = choose(rng, choices)
    if rng.random() < 0.5:
        first, second = second, first
    words = (("left of", "right of"), ("above", "below"))[axis]
    true_word, false_word = words if first.centre[axis] < second.centre[axis] else words[::-1]
    answer = yes_no(rng)
    word = true_word if answer == "yes" else false_word
    a, b = f"the {first.name}", f"the {second.name}"
    question = rng.choice(["Is {a} {w} {b}?", "Does {a} lie {w} {b}?", "Is it true that {a} is {w} {b}?"])
    last = say(rng, ["\n{{0}} is {w} {{1}}.", "\n{{0}} lies {w} {{1}}."], w=true_word)
    steps = (*two_searches(rng, a, (first,), b, (second,)), last)
    return Turn(question.format(a=a, b=b, w=word), steps, answer)
