"""`Survey`: what the examples of a source are, counted, and with a recipe's rules what a run has of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from v1lit.data.example import Example
from v1lit.data.example.marks import words_of
from v1lit.data.reasons import ReasonCounts, most_frequent_of
from v1lit.data.tools.counts import Counts, Extremes, Names, Place, printable
from v1lit.data.tools.find import Finding, ShardFile
from v1lit.grounding import raster
from v1lit.grounding.markup import REGION_NAME
from v1lit.grounding.region import Region, Size

if TYPE_CHECKING:
    from v1lit.data.tools.cost import Cost, Refused, Rules

NOTES = ("cut", "unseen")
"""Kinds of notes: what is lost of an example that is used all the same. cut: it is longer than the limit.
unseen: no image token sees some of its regions."""
LONGEST = 2**20
"""Tokens; what is longer is counted as this long."""
AREA_UNITS = 10_000
"""Areas are counted in parts of their image, this many of which are the whole."""
MOST_REASONS = 20
"""Kinds of reasons that are told apart."""
QUESTION_START = 200
"""Characters of a question that are looked at."""
_WORD = re.compile(r"\w+(?:['’]\w+)*")


@dataclass
class Reasons:
    """Why examples are refused, and how many for each kind of reason."""

    counted: ReasonCounts = field(default_factory=list)

    def update(self, other: Reasons) -> None:
        """Add those of another."""
        self.counted = most_frequent_of([*self.counted, *other.counted], MOST_REASONS)


@dataclass
class Survey:
    """What was found in some examples. Lengths are in tokens, and all zero where there are no rules."""

    examples: int = 0
    """Those that can be read and that the map does not leave out."""
    left_out: int = 0
    """By the map."""
    unusable: int = 0
    """That cannot be read, or are refused."""
    refused: int = 0
    """Read, but no run could use them."""
    turns: int = 0
    """Questions of users."""
    images: int = 0
    regions: int = 0
    tokens: int = 0
    """As a run reads them: the end of what is too long is cut."""
    learned: int = 0
    """Labels of the loss."""
    cut_examples: int = 0
    cut_tokens: int = 0
    cut_regions: int = 0
    unseen_examples: int = 0
    unseen_regions: int = 0
    lengths: Counts = field(default_factory=Counts)
    """Of examples before anything is cut, at most `LONGEST`."""
    image_tokens: Counts = field(default_factory=Counts)
    """Of examples."""
    images_each: Counts = field(default_factory=Counts)
    """Images of examples."""
    regions_each: Counts = field(default_factory=Counts)
    """Regions of examples."""
    areas: Counts = field(default_factory=Counts)
    """Of regions, in parts of their image: `AREA_UNITS` are the whole, rounded down."""
    questions: Names = field(default_factory=Names)
    """The first two words of questions."""
    sources: Names = field(default_factory=Names)
    """The field `source` of examples."""
    reasons: Reasons = field(default_factory=Reasons)
    extreme_lengths: Extremes = field(default_factory=Extremes)
    extreme_image_tokens: Extremes = field(default_factory=Extremes)
    extreme_regions: Extremes = field(default_factory=Extremes)
    extreme_areas: Extremes = field(default_factory=Extremes)
    """In shares of an image."""
    notes: list[Finding] = field(default_factory=list)
    """What is lost of examples, see `NOTES`; of one shard only, and not added up."""

    def update(self, other: Survey) -> None:
        """Add what another has found, whose examples come later."""
        for name in (one.name for one in fields(self) if one.name != "notes"):
            mine, more = getattr(self, name), getattr(other, name)
            if isinstance(mine, int):
                setattr(self, name, mine + more)
            else:
                mine.update(more)

    @property
    def measured(self) -> bool:
        """Whether lengths are known of some examples."""
        return bool(self.lengths)


@dataclass(frozen=True)
class Surveyor:
    """Counts examples into surveys."""

    rules: Mapping[str, Rules] = field(default_factory=dict)
    """By `ShardFile.source`; without them examples are taken as they are, and not measured."""

    def note(
        self, survey: Survey, shard: ShardFile, index: int, key: str, example: Example
    ) -> Refused | None:
        """Count example `index` of a shard; returns why a run could not use it, where that is so.

        Raises MapError.
        """
        rules = self.rules.get(shard.source)
        cost: Cost | None = None
        refused: Refused | None = None
        if rules is not None:
            mapped, refused = rules.mapped(example, shard.location, index)
            if mapped is None and refused is None:
                survey.left_out += 1
                return None
            if mapped is not None:
                example = mapped
                cost, refused = rules.cost(example)
        survey.examples += 1
        if refused is not None:
            survey.refused += 1
            survey.reasons.update(Reasons([(refused.reason, 1)]))
            return refused
        place = {"shard": shard.location, "index": index, "id": example.id}
        _note_content(survey, place, example)
        if cost is not None:
            _note_cost(survey, place, key, cost)
        return None


def _note_content(survey: Survey, place: Mapping[str, Any], example: Example) -> None:
    """What an example is for any backbone."""
    for message in example.messages:
        if message.role == "user":
            survey.turns += 1
            survey.questions.note(question_start(message.content))
    survey.sources.note(example.source or "(none)")
    survey.images += len(example.images)
    survey.images_each[len(example.images)] += 1
    survey.regions += len(example.regions)
    survey.regions_each[len(example.regions)] += 1
    survey.extreme_regions.note(Place(len(example.regions), **place))
    for name, region in example.regions.items():
        share = area_share(region, example.images[region.image].size)
        survey.areas[int(share * AREA_UNITS + 1e-9)] += 1
        survey.extreme_areas.note(Place(share, **place, region=name))


def _note_cost(survey: Survey, place: Mapping[str, Any], key: str, cost: Cost) -> None:
    """What an example takes of a run, and what is lost of it."""
    survey.tokens += cost.tokens
    survey.learned += cost.learned
    survey.lengths[min(cost.whole, LONGEST)] += 1
    survey.image_tokens[cost.image_tokens] += 1
    survey.extreme_lengths.note(Place(cost.whole, **place))
    survey.extreme_image_tokens.note(Place(cost.image_tokens, **place))
    if cut := cost.whole - cost.tokens:
        survey.cut_examples += 1
        survey.cut_tokens += cut
        survey.cut_regions += cost.cut_regions
        reason = f"it has {cost.whole} tokens; the last {cut} are cut, with {cost.cut_regions} regions"
        survey.notes.append(Finding(place["shard"], key, "cut", reason))
    if cost.unseen:
        survey.unseen_examples += 1
        survey.unseen_regions += len(cost.unseen)
        reason = f"no image token sees {printable(', '.join(cost.unseen), 200)}"
        survey.notes.append(Finding(place["shard"], key, "unseen", reason))


def question_start(content: str) -> str:
    """The first two words of a question in small letters, without marks: its kind, as far as words say it."""
    words = REGION_NAME.sub(" ", words_of(content)[:QUESTION_START]).lower()
    return " ".join(_WORD.findall(words)[:2]) or "(no words)"


def area_share(region: Region, image_size: Size) -> float:
    """The share of its image that a region covers, 0 to 1: exact of boxes, else counted in pixels."""
    boxes = region.boxes()
    pixels = raster.union_area(boxes) if boxes is not None else int(region.mask(image_size).sum())
    return pixels / (image_size[0] * image_size[1])
