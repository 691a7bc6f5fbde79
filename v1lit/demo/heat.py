"""Where every token of an answer would have pointed: a map of how likely each patch was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from v1lit.grounding.patch_map import token_ranges
from v1lit.inference.page_parts import PageContent, escape, place

FAINTEST = 1 / 256
"""Share of the likeliest patch's probability below which a patch is not drawn."""
CONTEXT = 60
"""Characters of the text that are shown before a step."""


@dataclass(frozen=True)
class Steps:
    """What the slider goes over: the tokens of one answer."""

    shown: PageContent
    pieces: Sequence[str]
    """The text of every token."""
    distributions: npt.NDArray[np.float32]
    """`[tokens, image_tokens]`: of each, where it would have pointed; rows sum to 1."""

    def __len__(self) -> int:
        return len(self.distributions)

    def render(self, step: int) -> str:
        """The heat map of a step, from 1, as HTML."""
        step = min(max(step, 1), len(self))
        likely = self.distributions[step - 1]
        before = "".join(self.pieces[: step - 1])
        before = ("…" if len(before) > CONTEXT else "") + before[-CONTEXT:]
        figures = "".join(self._figure(likely, index) for index in range(len(self.shown.pictures)))
        best = int(likely.argmax())
        return (
            f'<div class="heat"><p dir="auto"><span class="before">{escape(before)}</span>'
            f'<mark>{escape(self.pieces[step - 1])}</mark></p>{figures}<p class="sure">Step {step} of '
            f"{len(self)}: likeliest patch {best}, {likely[best]:.1%} of what points; "
            f"entropy {_entropy(likely):.2f} of at most {np.log(len(likely)):.2f} nats</p></div>"
        )

    def _figure(self, likely: npt.NDArray[np.float32], index: int) -> str:
        patch_map, span = self.shown.patch_maps[index], token_ranges(self.shown.patch_maps)[index]
        width, height = patch_map.image_size
        shares = likely[span.start : span.stop] / likely.max()
        patches = "".join(
            f'<rect {place(patch_map.boxes[at].tolist())} fill-opacity="{shares[at]:.3f}">'
            f"<title>patch {span.start + at}: {likely[span.start + at]:.1%}</title></rect>"
            for at in np.flatnonzero(patch_map.spatial & (shares >= FAINTEST)).tolist()
        )
        return (
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="heat map of image {index + 1}">'
            f'<image href="{self.shown.pictures[index]}" width="{width}" height="{height}"></image>'
            f"{patches}</svg>"
        )


def _entropy(likely: npt.NDArray[np.float32]) -> float:
    """Of a distribution, in nats."""
    some = likely[likely > 0].astype(np.float64)
    return float(-(some * np.log(some)).sum())
