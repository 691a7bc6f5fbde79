"""What a run would trip over, in sentences: what is cut, refused or not seen, and whether it would stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from v1lit.data.config import EncodingConfig, StreamConfig
from v1lit.data.loading.skips import AT_FIRST
from v1lit.data.reasons import in_words
from v1lit.data.tools.counts import Place, printable
from v1lit.data.tools.sheets import joined, number, share
from v1lit.data.tools.survey import Survey


def what_is_lost(surveys: Mapping[str, Survey], encoding: EncodingConfig) -> Iterator[str]:
    """A sentence for everything that a run does not get of its examples, by source."""
    for name, survey in surveys.items():
        where, examples = (f"{name}: " if len(surveys) > 1 else ""), number(survey.examples)
        if survey.cut_examples:
            yield (
                f"{where}{number(survey.cut_examples)} of {examples} examples are longer than "
                f"data.encoding.max_tokens={encoding.max_tokens}: {number(survey.cut_tokens)} tokens are cut "
                f"from their ends, with {number(survey.cut_regions)} regions; the longest has "
                f"{_at(survey.extreme_lengths.largest[0])}"
            )
        if survey.unseen_regions:
            yield (
                f"{where}no image token sees {number(survey.unseen_regions)} regions of "
                f"{number(survey.unseen_examples)} examples; they are written without pointers"
            )
        if survey.refused:
            why = in_words(survey.reasons.counted)
            yield f"{where}{number(survey.refused)} of {examples} examples are refused: {why}"
        if survey.left_out:
            of = number(survey.left_out + survey.examples)
            yield f"{where}data.map leaves out {number(survey.left_out)} of {of} examples"


def stops(train: Mapping[str, Survey], stream: StreamConfig) -> str | None:
    """Why training on these sources would stop; None where it would not, as far as an epoch tells."""
    whole = joined(train)
    bad, read = whole.unusable, whole.examples + whole.unusable - whole.refused
    if bad >= read:
        why = f"not one of {number(bad)} examples can be used" if bad else "data.map leaves out every example"
        return f"the run would have nothing to read: {why}"
    if bad and stream.on_bad == "stop":
        return "the run would stop at the first example that it cannot use: data.stream.on_bad is stop"
    if bad > stream.max_bad_fraction * max(read, AT_FIRST):
        of = f"{number(bad)} of {number(read)} examples cannot be used ({share(bad, read)})"
        return f"the run would stop: {of}, and data.stream.max_bad_fraction is {stream.max_bad_fraction:g}"
    return None


def _at(place: Place) -> str:
    return f"{number(int(place.value))} ({printable(place.id)!r} of {place.shard})"
