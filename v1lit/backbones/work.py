"""What images and states cost, in counts of things; `v1lit.training.flops` makes operations of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class VisionWork(NamedTuple):
    """What the images of a batch cost, in counts of things."""

    patches: int = 0
    """Patches cut out of the images."""
    tokens: int = 0
    """Rows of the tower's layers: patches and class tokens."""
    attention: int = 0
    """Width of the attention times the pairs of tokens that see each other, summed over the layers."""
    image_tokens: int = 0
    """Image tokens that reach the decoder."""
    surplus: int = 0
    """Rows of the projector beyond the image tokens: cut off as padding, less separators, made without it."""
    tower: int = 0
    tower_backward: int = 0
    projector: int = 0
    projector_backward: int = 0
    """Operations in either pass, where a family counts them itself: instead of those made of the above."""
    ahead: int = 0
    """Squares of the numbers of image tokens that see each other in the decoder, summed."""


class StateWork(NamedTuple):
    """What decoder layers cost that carry a state from token to token in place of attention."""

    layers: int = 0
    """How many there are."""
    token: int = 0
    """Multiplications of a token with their states, in all of them."""


def square_work(
    images: int, patches: int, image_tokens: int, layers: int, width: int, class_tokens: int = 1
) -> VisionWork:
    """Work of a tower in which every patch of an image (or tile) sees every other.

    Args:
        images: Images or tiles, all of the size that the tower was made for.
        patches: Of one image.
        image_tokens: Of one image.
        layers: Those whose output is used.
        width: Of the attention.
        class_tokens: Beside the patches of an image.
    """
    rows = patches + class_tokens
    return VisionWork(
        images * patches, images * rows, images * layers * rows**2 * width, images * image_tokens
    )


def layers_used(taken: int | Sequence[int], layers: int) -> int:
    """Layers of a tower up to the last whose output is taken, from `vision_feature_layer` in a config.

    State 0 is the input of the first layer, state n the output of layer n; negative ones count from the end.
    """
    return max(state % (layers + 1) for state in ([taken] if isinstance(taken, int) else taken))
