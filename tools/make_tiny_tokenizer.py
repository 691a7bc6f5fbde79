"""Make ``v1lit/backbones/tiny_tokenizer.json``: a byte-level BPE for questions and traces, deterministic.

Usage: python tools/make_tiny_tokenizer.py [OUT]
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from v1lit.files import write_atomically

OUT = Path(__file__).resolve().parents[1] / "v1lit" / "backbones" / "tiny_tokenizer.json"
VOCABULARY = 1280

# Marks of the families' chat formats. The first is the padding.
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
]
# The trace grammar's own marks: one token each, but ordinary text otherwise.
MARKS = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<region>",
    "</region>",
    'detect(query="',
    '", objects=["',
    '", objects=[',
    '"])',
    '", "',
    *(f"<obj{n}>" for n in range(1, 17)),
]
# A number with two decimals (a coordinate) is one piece; other digits stand alone; words keep their space.
PIECES = r" ?\d\.\d\d| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"

COLOURS = "red green blue yellow purple orange black white grey brown pink cyan"
SHAPES = "circle square triangle star diamond rectangle cross ring ellipse shape"
CHART = "bar label value axis arrow box node column title legend point line"
THINGS = ["platelet", "white blood cell", "red blood cell", "raccoon", "object", "cell", "animal", "image"]
SIDES = ["left", "right", "top", "bottom", "upper", "lower", "above", "below", "middle", "center", "centre"]
# Words of scenes and of photographs that the sentences below lack, and words that begin a line or a name.
SCENE_WORDS = """
against arrow arrows axis bar bars circles colour colours corner count do does each end ends equal half have
height higher label labels leave leaves leaving letter lie lies lower makes many mark more most name next
node nodes none number object objects of one outnumber point points read see shapes shorter shortest squares
stand stands taller tallest than that then there triangles true two under value which with you yes no top
bottom left right
"""
PHOTO_WORDS = """
about all alone any around area before besides boxes by can cells centred clearly closest conclude condition
confirms contain contains covers decide down each enough every evidence exactly field first fits found go
ground guess have here hold holds image inspect instances involved just know localise locate look marked
match matter micrograph microscope need not object occupies only out over part percent photo photograph
platelets position possible present puts question raccoon raccoons reach reason region relevant run scene
separate settles should shows single sits smear start step tally things think this through total toward up
vertically view visible want what where whether whole will work would
"""
STARTS = """
Adding And Are Calling Could Count Counting Do Does Find First For Grounding Hence Here How I In Is It Let
Looking Name Next No Nothing Now Of Okay Only Position Scanning So That The Then There Therefore This Time
To Two Under What Where Which With Would Yes bar bars node nodes object objects circle circles square
squares triangle triangles the platelets raccoon raccoons white all bottom each every no top yes left right
none red green blue yellow purple orange
"""
LABELS = "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z Jan Feb Mar Apr May Mon Tue Wed Thu Fri"
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]

QUESTIONS = [
    "Where is the {a}?",
    "Find the {a}.",
    "Point to the {a}.",
    "How many {a}s are there?",
    "How many {a}s are in the image?",
    "Which is larger, the {a} or the {b}?",
    "Which is smaller, the {a} or the {b}?",
    "Which is taller, {a} or {b}?",
    "Are there more {a}s than {b}s?",
    "How many more {a}s than {b}s are there?",
    "Is the {a} left of the {b}?",
    "Is the {a} to the right of the {b}?",
    "Is the {a} above or below the {b}?",
    "Is there a {a} in the {s} half of the image?",
    "Is there an {a} in the picture?",
    "Is there more than one {a}?",
    "Are there at least {n} {a}s?",
    "Is the {a} wider or taller?",
    "Which corner is nearest to the {a}?",
    "What is on the {s} side?",
    "What colour is the {b}?",
    "What is the value of {a}?",
    "Does the box of the {a} cover more than half of the image?",
    "Which label does the arrow from {a} point to?",
]
TRACES = [
    '<think> I look for the {a}. detect(query="the {a}", objects=["<obj1><region>[0.10, 0.20, 0.30, 0.40]'
    '</region>"]) It is here. </think><answer> {s} </answer>',
    '<think> Let me find every {a}. detect(query="{a}s", objects=["<obj1><region></region>", '
    '"<obj2><region></region>"]) I count {n} of them: <obj1>, <obj2>. So the answer is {n}. </think>'
    "<answer> {n} </answer>",
    "<think> First I find the {a}. Then I find the {b}. <obj1> is larger than <obj2>, so the {a} is the "
    "larger one. </think><answer> the {a} </answer>",
    "<think> The center of <obj1> is to the {s} of the center of <obj2>. Therefore yes. </think><answer> yes "
    "</answer>",
    '<think> There is no {a}: detect(query="{a}", objects=[]) finds nothing. </think><answer> no </answer>',
    "The {a} is at the {s}. I check where it is, compare the two and see that there are {n}. The box is in "
    "the {s} {s} corner. They are equal. The {b} has a height of 12 and the {a} a width of 345. Done.",
    "You are a helpful assistant.",
    "system\n",
    "user\n",
    "assistant\n",
    "USER: ASSISTANT: A chat between a curious user and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the user's questions.",
]


def corpus() -> Iterator[str]:
    """Questions, traces and coordinates in the wording of the synthetic scenes and of the sample data."""
    pairs = itertools.product(COLOURS.split(), SHAPES.split())
    names = [f"{colour} {shape}" for colour, shape in pairs] + THINGS + CHART.split()
    for index, (a, b) in enumerate(zip(names, names[7:] + names[:7], strict=True)):
        words = {"a": a, "b": b, "s": SIDES[index % len(SIDES)], "n": NUMBERS[index % len(NUMBERS)]}
        for template in QUESTIONS + TRACES:
            yield template.format(**words)
            yield template.format(**{**words, "n": str(index)})
    for text, times in ((SCENE_WORDS, 60), (PHOTO_WORDS, 20), (LABELS, 30)):
        yield from (f" {word}" for word in text.split() * times)
    yield from STARTS.split() * 30
    for hundredths in range(101):
        number = f"{hundredths / 100:.2f}"
        for _ in range(50):
            yield f"[{number}, {number}, {number}, {number}]"


def make_tokenizer() -> Tokenizer:
    """Train the tokenizer. Raises ``RuntimeError`` if a mark would not be one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKS),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pieces = [piece for text in corpus() for piece in _without_marks(text)]
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    for mark in SPECIAL + MARKS:
        if len(tokenizer.encode(mark).ids) != 1:
            raise RuntimeError(f"{mark!r} is not one token")
    return tokenizer


def _without_marks(text: str) -> list[str]:
    # Marks are matched before the pieces are made, so pieces that contain one would never be used.
    for mark in sorted(MARKS, key=len, reverse=True):
        text = text.replace(mark, "\0")
    return [piece for piece in text.split("\0") if piece]


def main(arguments: list[str]) -> None:
    """Write the tokenizer to the path given, or to where the package expects it."""
    out = Path(arguments[0]) if arguments else OUT
    write_atomically(out, make_tokenizer().to_str() + "\n")
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
