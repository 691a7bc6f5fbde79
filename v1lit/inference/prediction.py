"""`Prediction`: what a model said about its images, where it looked, and how sure it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from v1lit.grounding.draw import PALETTE, draw_regions
from v1lit.grounding.patch_map import PatchMap, token_regions
from v1lit.grounding.region import Region
from v1lit.grounding.trace import Detect, Trace
from v1lit.inference.looks import Counts, Look, Seconds
from v1lit.inference.page import render_page
from v1lit.inference.page_parts import PageContent, data_url
from v1lit.inference.prompt import Picture, open_picture

DIGITS = 6
"""Decimals of probabilities and entropies in JSON."""


@dataclass(frozen=True)
class Prediction:
    """What a model said about its images."""

    text: str
    """The trace as generated; pointers are written `<|copy_7|>`."""
    answer: str | None
    """What stands between the last `<answer>` and its `</answer>`."""
    trace: Trace
    """The text with its `detect(...)` calls taken apart."""
    pointers: tuple[tuple[int, ...], ...]
    """Image tokens that were pointed at: one tuple for every run of consecutive pointers."""
    patch_maps: tuple[PatchMap, ...] = field(repr=False)
    """One per image."""
    looks: tuple[Look, ...] = field(default=(), compare=False)
    """Every place in the text where an image was looked at, in order."""
    score: float | None = field(default=None, compare=False)
    """Mean logarithm of the probability of its tokens, in the joint softmax, unsteered; None for beams."""
    counts: Counts | None = None
    seconds: Seconds | None = field(default=None, compare=False)
    question: str = field(default="", compare=False)
    """The last thing that was asked, as a reader sees it."""
    pictures: tuple[Picture, ...] = field(default=(), compare=False, repr=False)
    """The images as they were given."""
    ids: tuple[int, ...] = field(default=(), compare=False, repr=False)
    """`[generated]`: of the tokens that were generated, the one that ends an answer included."""
    distributions: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    """`[generated, image_tokens]`: where every token would have pointed, if asked for; rows sum to 1."""

    @property
    def regions(self) -> list[Region]:
        """What the pointers cover, in pixels of the original images: one region per run and image."""
        return [region for run in self.pointers for region in token_regions(self.patch_maps, run)]

    def draw(self, image: int = 0, side: int | None = None) -> Image.Image:
        """A copy of one of the images with every region of the trace in it, each with the number of its look.

        Args:
            image: which of the images, from 0.
            side: longer side of the copy in pixels; that of the image when not given.

        Raises ValueError where there is no such image.
        """
        if not 0 <= image < len(self.pictures):
            raise ValueError(f"there is no image {image} to draw on; the question had {len(self.pictures)}")
        here = [(look.number, region) for look in self.looks for region in look.regions]
        here = [(number, region) for number, region in here if region.image == image]
        return draw_regions(
            open_picture(self.pictures[image]),
            [region for _, region in here],
            labels=[str(number) for number, _ in here],
            colors=[PALETTE[(number - 1) % len(PALETTE)] for number, _ in here] or None,
            side=side,
        )

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON, but for the images and `distributions`."""
        return {
            "question": self.question,
            "text": self.text,
            "answer": self.answer,
            "trace": [_part(part) for part in self.trace.parts],
            "looks": [_look(look) for look in self.looks],
            "images": [{"size": list(own.image_size), "tokens": len(own)} for own in self.patch_maps],
            "counts": None if self.counts is None else asdict(self.counts),
            "score": _rounded(self.score),
            "seconds": None if self.seconds is None else asdict(self.seconds),
        }

    def to_html(self, side: int = 1024) -> str:
        """A page that needs no other file: what points in the text lights up on the image, and the reverse.

        Args:
            side: longest side of an image on it, in pixels; larger ones are shrunk.
        """
        pictures = [data_url(open_picture(picture), side) for picture in self.pictures]
        return render_page(
            PageContent(self.question, self.text, self.answer, self.looks, self.patch_maps, pictures)
        )


def _part(part: str | Detect) -> dict[str, Any]:
    if isinstance(part, str):
        return {"text": part}
    objects = [
        {"name": thing.name, "box": thing.box and list(thing.box), "tokens": list(thing.tokens)}
        for thing in part.objects
    ]
    return {"query": part.query, "objects": objects}


def _look(look: Look) -> dict[str, Any]:
    return {
        "number": look.number,
        "name": look.name,
        "query": look.query,
        "tokens": list(look.tokens),
        "probabilities": _rounded_all(look.probabilities),
        "entropies": _rounded_all(look.entropies),
        "regions": [region.to_json() for region in look.regions],
        "characters": [look.start, look.stop],
    }


def _rounded_all(values: Sequence[float]) -> list[float]:
    return [round(value, DIGITS) for value in values]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
