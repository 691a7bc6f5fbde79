"""Tables of surveys, as text: for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from v1lit.data.tools.counts import Counts, Names
from v1lit.data.tools.survey import AREA_UNITS, Survey

FREQUENT = 12
"""Names that a table lists; the others are counted together."""


@dataclass
class Sheet:
    """A table: the first column is text, the others are numbers."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)


def joined(surveys: Mapping[str, Survey]) -> Survey:
    """All of them as one."""
    whole = Survey()
    for survey in surveys.values():
        whole.update(survey)
    return whole


def with_total(surveys: Mapping[str, Survey]) -> dict[str, Survey]:
    """The surveys by location, and behind several of them `all` together."""
    return {**surveys, **({"all": joined(surveys)} if len(surveys) > 1 else {})}


def source_sheet(surveys: Mapping[str, Survey]) -> Sheet:
    """What every source holds, and its share of all tokens."""
    whole = joined(surveys)
    tokens = ("tokens", "of images", "learned", "share of tokens") if whole.measured else ()
    sheet = Sheet("sources", ("source", "examples", "questions", "images", "regions", *tokens))
    for name, survey in with_total(surveys).items():
        row = [name, *map(number, (survey.examples, survey.turns, survey.images, survey.regions))]
        if whole.measured:
            row += [number(survey.tokens), share(survey.image_tokens.sum, survey.tokens)]
            row += [share(survey.learned, survey.tokens), share(survey.tokens, whole.tokens)]
        sheet.rows.append(row)
    return sheet


def value_sheet(survey: Survey) -> Sheet:
    """How large what is counted of examples and regions is."""
    sheet = Sheet("of each", ("", "mean", "smallest", "median", "95 %", "99 %", "largest"))
    counted = {
        "tokens of an example": survey.lengths,
        "image tokens of an example": survey.image_tokens,
        "images of an example": survey.images_each,
        "regions of an example": survey.regions_each,
    }
    for name, counts in counted.items():
        if counts:
            middle = (number(counts.quantile(one)) for one in (0.5, 0.95, 0.99))
            ends = number(min(counts)), number(max(counts))
            sheet.rows.append([name, f"{counts.mean:,.1f}", ends[0], *middle, ends[1]])
    if survey.areas:
        sheet.rows.append(["area of a region", *_areas(survey.areas)])
    return sheet


def _areas(areas: Counts) -> list[str]:
    """Mean, smallest, quantiles and largest, in hundredths of an image."""
    values = [areas.mean, min(areas), *(areas.quantile(one) for one in (0.5, 0.95, 0.99)), max(areas)]
    return [f"{value / AREA_UNITS:.2%}" for value in values]


def name_sheet(title: str, column: str, names: Names) -> Sheet:
    """The most frequent names."""
    first, others = names.most_common(FREQUENT)
    total = others + sum(count for _, count in first)
    sheet = Sheet(title, (column, "found", "share"))
    sheet.rows += [[name, number(count), share(count, total)] for name, count in first]
    if others:
        sheet.rows.append(["(others)", number(others), share(others, total)])
    return sheet


def length_sheet(surveys: Mapping[str, Survey], max_tokens: int) -> Sheet:
    """Lengths against the limit, and what is lost for it or anyway."""
    columns = ("source", "examples", "median", "99 %", "longest", "cut", "refused", "unreadable", "left out",
               "unseen regions")  # fmt: skip
    sheet = Sheet(f"lengths in tokens, of at most {max_tokens:,}", columns)
    for name, survey in with_total(surveys).items():
        lengths = survey.lengths
        longest = [lengths.quantile(0.5), lengths.quantile(0.99), max(lengths, default=0)]
        unreadable = survey.unusable - survey.refused
        lost = [survey.cut_examples, survey.refused, unreadable, survey.left_out, survey.unseen_regions]
        sheet.rows.append([name, *map(number, (survey.examples, *longest, *lost))])
    return sheet


def cost_sheet(surveys: Mapping[str, Survey], times: Mapping[str, float]) -> Sheet:
    """Tokens of every source, and of what an epoch takes of it.

    `times`: how often each of its examples comes per epoch; of sources without it that is not known.
    """
    epoch = {name: times[name] * surveys[name].tokens for name in surveys if name in times}
    known = ("an epoch", "share of an epoch") if epoch else ()
    sheet = Sheet("cost in tokens", ("source", "tokens", "an example", "of images", "learned", *known))
    for name, survey in surveys.items():
        mean = survey.tokens / max(1, survey.lengths.total())
        row = [name, number(survey.tokens), f"{mean:,.1f}"]
        row += [share(survey.image_tokens.sum, survey.tokens), share(survey.learned, survey.tokens)]
        if name in epoch:
            row += [number(round(epoch[name])), share(epoch[name], sum(epoch.values()))]
        sheet.rows.append([*row, *[""] * (len(sheet.columns) - len(row))])
    return sheet


def number(value: int) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,}"


def share(part: float, whole: float) -> str:
    """A part of a whole in hundredths, with one decimal."""
    return f"{part / whole:.1%}" if whole else ""
