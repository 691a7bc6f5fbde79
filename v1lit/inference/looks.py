"""Where an answer looked, and what it took: the parts of a prediction."""

from __future__ import annotations

from dataclasses import dataclass

from v1lit.grounding.region import Region


@dataclass(frozen=True)
class Look:
    """A place in a trace where an image was looked at: a run of pointers, or a box that was written."""

    number: int
    """From 1, in the order of the text; what `Prediction.draw` writes at its regions."""
    name: str
    """Of the object that it stands for, such as `<obj1>`; "" where it has none."""
    query: str
    """Of the call that it stands in; "" outside of calls."""
    tokens: tuple[int, ...]
    """Image tokens that were pointed at; none of a box."""
    probabilities: tuple[float, ...]
    """Of each pointer where it was written, in the joint softmax over words and pointers, unsteered."""
    entropies: tuple[float, ...]
    """Of the distribution over the patches where each pointer was written, in nats."""
    regions: tuple[Region, ...]
    """What is looked at, in pixels of the original images: one region per image."""
    start: int
    """Where it begins in the text, in characters."""
    stop: int
    """Where it ends."""


@dataclass(frozen=True)
class Counts:
    """Tokens of a prompt and its answer."""

    prompt: int
    """Image tokens included."""
    image: int
    generated: int
    """With the token that ends an answer."""


@dataclass(frozen=True)
class Seconds:
    """What an answer took; questions that were asked together all took the same."""

    prepare: float
    """To open the images and encode the prompt."""
    prefill: float
    """To encode the images for the decoder, and up to the first logits."""
    decode: float
    """The steps after it."""
