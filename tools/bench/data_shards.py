"""The shards that the data benchmark reads: photo-like jpegs with questions, regions and reasoning traces."""

from __future__ import annotations

import io
import random
import tarfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image, ImageDraw

from v1lit.data.example import Example, Message
from v1lit.data.images import EncodedImage, read_header
from v1lit.data.shards import ShardWriter, write_index
from v1lit.grounding.region import Region

SIDE = 672
"""Pixels of both sides of an image."""
QUALITY = 85
SHARDS = 4
PICTURES = 96
"""Different images; they come again under other names, each time as bytes of their own in the shards."""
LAYERS = ((3, 80.0), (10, 45.0), (40, 22.0), (160, 9.0))
"""Cells per side and strength of the noise that makes a picture, from clouds to texture."""
GRAIN = 5.0
COLOURS = ("red", "green", "blue", "yellow", "white", "black")
KINDS = ("ball", "box")

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Shards:
    """What was written."""

    folder: Path
    files: tuple[Path, ...]
    places: tuple[tuple[tuple[int, int], ...], ...]
    """Of every file, where the images lie, in order: first byte and number of bytes."""
    bytes: int
    """Of all files."""

    @property
    def examples(self) -> int:
        return sum(map(len, self.places))

    def describe(self) -> str:
        """The sizes, in words."""
        sizes = [size / 1e3 for places in self.places for _, size in places]
        return (
            f"{self.examples:,} examples in {len(self.files)} shards of together {self.bytes / 1e6:,.0f} MB, "
            f"jpegs of {SIDE} x {SIDE} pixels and {min(sizes):.0f} to {max(sizes):.0f} KB "
            f"(median {median(sizes):.0f} KB), in the page cache"
        )


def make_shards(folder: Path, examples: int, pictures: int = PICTURES) -> Shards:
    """Write `SHARDS` shards with an index; always the same bytes for the same numbers."""
    drawn = [draw_picture(number) for number in range(min(pictures, examples))]
    with ShardWriter(folder, max_examples=-(-examples // SHARDS)) as writer:
        for number in range(examples):
            writer.write(make_example(number, *drawn[number % len(drawn)]))
    write_index(folder, writer.shards)
    files = tuple(folder / shard.file for shard in writer.shards)
    places = tuple(tuple(_image_places(file)) for file in files)
    return Shards(folder, files, places, sum(file.stat().st_size for file in files))


def draw_picture(number: int) -> tuple[EncodedImage, dict[str, Box]]:
    """A jpeg as large as a photograph of its size, and what is to be seen where."""
    noise, rng = np.random.default_rng([0, number]), random.Random(number)
    pixels = np.full((SIDE, SIDE, 3), 128, np.float32)
    for cells, strength in LAYERS:
        layer = noise.normal(0, strength, (3, cells, cells)).astype(np.float32)
        for channel in range(3):
            smooth = Image.fromarray(layer[channel]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            pixels[:, :, channel] += np.asarray(smooth)
    pixels += noise.normal(0, GRAIN, (SIDE, SIDE, 1)).astype(np.float32)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    shapes = _draw_shapes(image, rng)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return read_header(file.getvalue()), shapes


def _draw_shapes(image: Image.Image, rng: random.Random) -> dict[str, Box]:
    """Up to six things, each in a cell of its own; name -> box in pixels."""
    pen, shapes = ImageDraw.Draw(image), {}
    for cell in rng.sample(range(9), rng.randint(1, 6)):
        colour, kind = rng.choice(COLOURS), rng.choice(KINDS)
        left, top = SIDE // 3 * (cell % 3) + rng.randint(5, 60), SIDE // 3 * (cell // 3) + rng.randint(5, 60)
        box = (left, top, left + rng.randint(40, 140), top + rng.randint(40, 140))
        (pen.ellipse if kind == "ball" else pen.rectangle)(box, fill=colour)
        shapes[f"the {colour} {kind} in cell {cell}"] = box
    return shapes


def make_example(number: int, image: EncodedImage, shapes: dict[str, Box]) -> Example:
    """A question about a picture and a trace that looks for everything in it, written as v1g writes it."""
    names = {thing: f"<|region_{place}|>" for place, thing in enumerate(shapes, start=1)}
    looks = [
        f'Let me find {thing}.\ndetect(query="{thing}", objects=["<obj{place}>{name}"])\n\n'
        f"<obj{place}> is where I expected it, so I count it and go on with what is left.\n"
        for place, (thing, name) in enumerate(names.items(), start=1)
    ]
    answer = str(len(shapes))
    trace = f"<think> Okay, let me look at the image carefully. {''.join(looks)}That makes {answer}. </think>"
    return Example(
        id=f"picture_{number:06d}",
        images=(image,),
        messages=(
            Message("user", "<image>\nHow many things were put into the picture?"),
            Message("assistant", f"{trace}<answer>{answer}</answer>"),
        ),
        regions={name: Region.from_box(shapes[thing]) for thing, name in names.items()},
        answer=answer,
        source="benchmark",
    )


def _image_places(file: Path) -> list[tuple[int, int]]:
    with tarfile.open(file, "r:") as tar:
        return [(member.offset_data, member.size) for member in tar if member.name.endswith(".jpg")]
