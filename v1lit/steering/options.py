"""`Steering`: where and when a model may look, as plain options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import LogitsProcessor

from v1lit.errors import OptionError, check_least
from v1lit.grounding.patch_map import PatchMap
from v1lit.grounding.region import Region
from v1lit.revisit.crop import Crop
from v1lit.revisit.suppression import Suppression
from v1lit.steering.grammar_rule import GrammarRule
from v1lit.steering.looks import MaxLooks, MaxPointers
from v1lit.steering.places import Connected, Places, allowed_tokens
from v1lit.steering.vocabulary import Vocabulary

if TYPE_CHECKING:
    from v1lit.backbones.processor import Processor

Place = Region | Sequence[float]
"""A region, or a box `(x1, y1, x2, y2)` of the first image, in pixels of the original image."""


@dataclass(frozen=True)
class Steering:
    """What a model is held to while it generates; without options, to nothing.

    ```python
    predictor(image, "Where is the cat?", steer=v1lit.Steering(inside=[(0, 0, 320, 240)], max_looks=2))
    ```
    """

    inside: Sequence[Place] | None = None
    """Only image tokens that see some of these can be pointed at; None for all."""
    outside: Sequence[Place] = ()
    """Image tokens that see some of these cannot."""
    points: bool = True
    """Whether there are pointers at all."""
    max_looks: int | None = None
    """Runs of pointers at most."""
    max_pointers: int | None = None
    """Pointers of a run at most."""
    connected: bool = False
    """Each patch of a run but the first touches one before it."""
    distinct: bool = False
    """No patch comes twice in a run."""
    once: bool = False
    """No patch is pointed at, and so copied, that was before, in the prompt included."""
    grammar: bool = False
    """Calls and regions are well formed; `look_every` and `queries` hold them to that too."""
    look_every: int | None = None
    """Tokens of text at most before a call begins and points at something."""
    queries: Sequence[str] = ()
    """What the first calls look for, in this order; each points at something."""

    GROUP: ClassVar[str] = "steer"

    def __post_init__(self) -> None:
        check_least(self, 0, "max_looks")
        check_least(self, 1, "max_pointers")
        check_least(self, 1, "look_every")
        if isinstance(self.queries, str):
            why = "it is a list of texts, one for each call"
            raise OptionError("queries", self.queries, why, self.GROUP)
        forced = "look_every" if self.look_every is not None else "queries" if self.queries else None
        never = "points=False" if not self.points else "max_looks=0" if self.max_looks == 0 else None
        if forced and never:
            why = f"it asks for looks that {never} forbids"
            raise OptionError(forced, getattr(self, forced), why, self.GROUP)
        for field in ("inside", "outside"):
            places = getattr(self, field)
            if isinstance(places, Region) or (places and isinstance(places[0], int | float)):
                why = "give a list of regions or boxes, also of one"
                raise OptionError(field, places, why, self.GROUP)

    @property
    def uses_grammar(self) -> bool:
        """Whether the format of traces is held."""
        return self.grammar or self.look_every is not None or bool(self.queries)

    def to_json(self) -> dict[str, Any]:
        """The options that ask for something, as plain JSON."""
        asked = {name: value for name, value in vars(self).items() if value != getattr(Steering(), name)}
        for name in ("inside", "outside"):
            if name in asked:
                asked[name] = [Region.of(place).to_json() for place in asked[name]]
        return asked

    def rules(
        self,
        processor: Processor,
        patch_maps: Sequence[Sequence[PatchMap]],
        prompt_length: int,
        vocabulary: Vocabulary | None = None,
    ) -> list[LogitsProcessor]:
        """Logits processors for one call of `generate`.

        Args:
            processor: of the model.
            patch_maps: of every prompt, one per image.
            prompt_length: tokens of the prompts, padding included.
            vocabulary: `Vocabulary.of(processor)`, where it is at hand.

        Raises ValueError for regions that no image token sees or whose image there is not, and for a strategy
        under which these rules cannot hold.
        """
        self._check_strategy(processor)
        start, strategy = processor.pointer_start, processor.revisit
        image = processor.image_token_id if strategy.ends else None
        rules: list[LogitsProcessor] = []
        if not self.points:
            rules.append(MaxLooks(0, start, prompt_length, image))
        if self.inside is not None or self.outside:
            rules.append(Places(self._allowed(patch_maps), start, prompt_length, image))
        if self.max_looks is not None:
            rules.append(MaxLooks(self.max_looks, start, prompt_length, image))
        if self.max_pointers is not None:
            rules.append(MaxPointers(self.max_pointers, start, prompt_length, image))
        if self.connected:
            rules.append(Connected(patch_maps, start, prompt_length, image))
        if self.distinct or self.once:
            rules.append(Suppression(start, not self.once, image))
        if self.uses_grammar:
            vocabulary = vocabulary or Vocabulary.of(processor)
            rules.append(GrammarRule(vocabulary, prompt_length, self.look_every, self.queries))
        return rules

    def _allowed(self, patch_maps: Sequence[Sequence[PatchMap]]) -> torch.Tensor:
        """`[prompts, pointers]`: which image tokens of each prompt can be pointed at."""
        inside = None if self.inside is None else [Region.of(place) for place in self.inside]
        outside = [Region.of(place) for place in self.outside]
        rows = [torch.tensor(allowed_tokens(maps, inside, outside), dtype=torch.bool) for maps in patch_maps]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def _check_strategy(self, processor: Processor) -> None:
        strategy = processor.revisit
        name = type(strategy).__name__
        if self != Steering() and isinstance(strategy, Crop):
            raise ValueError(
                f"the strategy {name} stops and begins anew behind every crop, so rules on all of an answer "
                "cannot hold; steer models of other strategies"
            )
        forced = self.look_every is not None or bool(self.queries)
        if forced and not strategy.points:
            raise ValueError(
                f"the strategy {name} writes no pointers, so look_every and queries cannot hold; "
                "steer a model that points"
            )
        if not strategy.beams and (self.max_pointers is not None or self.connected):
            which = "max_pointers" if self.max_pointers is not None else "connected"
            raise ValueError(
                f"the strategy {name} lets all patches over its threshold follow the first at once, which "
                f"{which} cannot hold back; limit them by model.revisit.options"
            )
