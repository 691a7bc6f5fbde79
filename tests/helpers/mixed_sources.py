"""A mixture of sources of every kind: words, one picture, several, without boxes, with several answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from helpers.shard_cases import jpeg, make
from v1lit.data.config import MixtureConfig, SourceConfig
from v1lit.data.example import Example, Message
from v1lit.data.images import read_header
from v1lit.data.shards import ShardWriter, write_index
from v1lit.grounding.region import Region


def words(id: str) -> Example:
    """No picture, and two answers, both learned."""
    return Example(
        id=id,
        messages=(
            Message("user", "What is two and two?"),
            Message("assistant", "Four."),
            Message("user", "And one more?"),
            Message("assistant", f"Five, said {id}."),
        ),
    )


def described(id: str) -> Example:
    """A picture without boxes."""
    image = read_header(jpeg(90))
    messages = (Message("user", "<image>\nWhat is this?"), Message("assistant", "A red field."))
    return Example(id=id, images=(image,), messages=messages)


def talked_over(id: str) -> Example:
    """Two pictures, and three answers, two of which point, each at another picture."""
    images = (read_header(jpeg(10)), read_header(jpeg(200)))
    regions = {
        "<|region_1|>": Region.from_box((1, 2, 30, 20)),
        "<|region_2|>": Region.from_box((4, 4, 36, 28), image=1),
    }
    turns = [
        ("user", "<image>\n<image>\nWhere is the first?"),
        ("assistant", 'detect(query="the first", objects=["<obj1><|region_1|>"])'),
        ("user", "Thank you. And the second?"),
        ("assistant", 'detect(query="the second", objects=["<obj1><|region_2|>"])'),
        ("user", "Good."),
        ("assistant", "You are welcome."),
    ]
    return Example(id=id, images=images, messages=tuple(Message(*turn) for turn in turns), regions=regions)


KINDS: dict[str, Callable[[str], Example]] = {
    "pointed": make,
    "words": words,
    "described": described,
    "talked": talked_over,
}


def write_sources(folder: Path, count: int = 6, val: int = 2) -> list[MixtureConfig]:
    """A folder for every kind, with `train/` and `val/`; the sources of a mixture, named by their folders."""
    sources = []
    for kind, made in KINDS.items():
        for split, examples in (("train", count), ("val", val)):
            place = folder / kind / split
            with ShardWriter(place) as writer:
                for number in range(examples):
                    writer.write(made(f"{kind}-{split}-{number}"))
            write_index(place, writer.shards)
        sources.append(MixtureConfig(str(folder / kind / "train"), val=str(folder / kind / "val")))
    return sources


def mixture_of(folder: Path) -> SourceConfig:
    """The source of a recipe, of what `write_sources` has written."""
    return SourceConfig(mixture=write_sources(folder))
