"""The looks that scenes can have, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from v1lit.data.synthetic import charts, diagrams, shapes

LOOKS: Mapping[str, ModuleType] = {"shapes": shapes, "bars": charts, "diagrams": diagrams}
"""A look is a module with `draw(rng, size) -> Scene` and a function `(rng, scene) -> Turn` for every kind of
question, which raises NoQuestionError where the scene allows none without ambiguity."""
IMAGE_SIZE = (168, 168)
"""Width and height in pixels, where none is given."""
