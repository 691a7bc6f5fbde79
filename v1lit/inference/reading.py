"""What generated ids say: text, answer, trace, and every place where an image was looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from v1lit.backbones.processor import Processor
from v1lit.grounding.markup import REGION, REGION_END, find_answers
from v1lit.grounding.patch_map import PatchMap, token_regions
from v1lit.grounding.region import Region
from v1lit.grounding.trace import Detect, DetectedObject, Trace, parse_trace
from v1lit.inference.looks import Counts, Look
from v1lit.inference.prediction import Prediction
from v1lit.inference.recording import Record
from v1lit.revisit.strategy import Strategy

LONGEST_BOX = 400
"""Characters of a box with the mark before it that are looked for before pointers."""
_WRITTEN = re.compile(rf"{REGION}\s*\[(.*?)\](?: of image ([0-9]{{1,4}}))?")
_NUMBER = re.compile(r"[+-]?[0-9.]+")
_OBJECT_BEFORE = re.compile(rf"{REGION}\s*(?:\[[^\]]*\]\s*)?\Z")
"""What stands before the pointers of an object."""


def read_answer(
    ids: Sequence[int],
    record: Record | None,
    patch_maps: tuple[PatchMap, ...],
    prompt_tokens: int,
    processor: Processor,
    strategy: Strategy,
) -> Prediction:
    """The prediction that generated ids make, up to the token that ends an answer.

    Args:
        ids: behind the prompt; what comes behind the end is padding.
        record: what the model found likely at each of them, if it was noted.
        patch_maps: one per image of the prompt.
        prompt_tokens: tokens of the prompt.
        processor: of the model.
        strategy: of the model.
    """
    stop = processor.stop_token_id
    generated = ids.index(stop) + 1 if stop in ids else len(ids)
    image_tokens = sum(map(len, patch_maps))
    # Without pointing they were put in, not generated; the one behind the last patch's ends a run.
    behind = processor.pointer_start + (image_tokens if strategy.points else 0)
    steps = [step for step in range(generated) if ids[step] < behind and ids[step] != stop]
    text, runs = _pieces([ids[step] for step in steps], processor)
    trace = parse_trace(text).trace
    looks = [
        *_pointed(text, runs, steps, trace, patch_maps, record),
        *_written(text, trace, patch_maps, strategy),
    ]
    looks.sort(key=lambda look: look.start)
    answers = find_answers(text, unfinished=True)
    return Prediction(
        text=text,
        answer=answers[-1].strip() if answers else None,
        trace=trace,
        pointers=tuple(tokens for tokens, *_ in runs),
        patch_maps=patch_maps,
        looks=tuple(replace(look, number=number) for number, look in enumerate(looks, start=1)),
        score=mean_logprob(ids[:generated], record, behind),
        counts=Counts(prompt=prompt_tokens, image=image_tokens, generated=generated),
        ids=tuple(ids[:generated]),
    )


def mean_logprob(ids: Sequence[int], record: Record | None, behind: int) -> float | None:
    """Over the ids that were generated; None where it was not noted, or for no ids."""
    own = [step for step, token in enumerate(ids) if token < behind]
    if record is None or record.logprobs is None or not own:
        return None
    return float(record.logprobs[own].mean())


def pointer_runs(ids: Sequence[int], pointer_start: int) -> tuple[tuple[int, ...], ...]:
    """Runs of consecutive pointers in a sequence of ids, as indices of image tokens."""
    runs = groupby(ids, key=lambda token: token >= pointer_start)
    return tuple(tuple(token - pointer_start for token in run) for is_pointer, run in runs if is_pointer)


Run = tuple[tuple[int, ...], int, int, int]
"""Image tokens of a run of pointers, index of its first id, and where its text begins and ends."""


def _pieces(ids: Sequence[int], processor: Processor) -> tuple[str, list[Run]]:
    """The text of ids, and the runs of pointers in it."""
    text, runs, first = "", list[Run](), 0
    for is_pointer, group in groupby(ids, key=lambda token: token >= processor.pointer_start):
        own = list(group)
        piece = processor.decode(own)
        if is_pointer:
            tokens = tuple(token - processor.pointer_start for token in own)
            runs.append((tokens, first, len(text), len(text) + len(piece)))
        text, first = text + piece, first + len(own)
    return text, runs


def _pointed(
    text: str,
    runs: Sequence[Run],
    steps: Sequence[int],
    trace: Trace,
    patch_maps: Sequence[PatchMap],
    record: Record | None,
) -> Iterator[Look]:
    """The looks that runs of pointers are."""
    objects = [pair for pair in _objects(trace) if pair[1].tokens]
    for tokens, first, start, stop in runs:
        # An object that no run makes was written in words that look like pointers.
        named = _OBJECT_BEFORE.search(text[max(0, start - LONGEST_BOX) : start]) is not None
        place = next((at for at, (_, thing) in enumerate(objects) if named and thing.tokens == tokens), None)
        call, thing = (None, None) if place is None else objects[place]
        if place is not None:
            del objects[: place + 1]
        own = steps[first : first + len(tokens)]
        yield Look(
            number=0,
            name="" if thing is None else thing.name,
            query="" if call is None else call.query,
            tokens=tokens,
            probabilities=tuple(record.probability(*pair) for pair in zip(own, tokens, strict=True))
            if record
            else (),
            entropies=tuple(record.entropies[own].tolist()) if record else (),
            regions=tuple(token_regions(patch_maps, tokens)),
            start=start,
            stop=stop,
        )


def _written(text: str, trace: Trace, patch_maps: Sequence[PatchMap], strategy: Strategy) -> Iterator[Look]:
    """The looks that objects with a box and without pointers are."""
    places = _WRITTEN.finditer(text)
    for call, thing in _objects(trace):
        if thing.box is None or thing.tokens:
            continue
        place = next((place for place in places if _numbers(place[1]) == thing.box), None)
        region = None if place is None else _region(thing, place[2], patch_maps, strategy)
        if place is not None and region is not None:
            end = text.find(REGION_END, place.end())
            stop = place.end() if end < 0 else end
            yield Look(0, thing.name, call.query, (), (), (), (region,), place.start() + len(REGION), stop)


def _region(
    thing: DetectedObject, image: str | None, patch_maps: Sequence[PatchMap], strategy: Strategy
) -> Region | None:
    """The box in pixels; None where it is no box, or of several images none is named."""
    index = int(image) - 1 if image else 0
    if thing.box is None or not 0 <= index < len(patch_maps) or (not image and len(patch_maps) > 1):
        return None
    size = patch_maps[index].image_size
    try:
        return Region.from_box(strategy.pixels(thing.box, size), index).clamped(size, max(size))
    except ValueError:
        return None


def _numbers(words: str) -> tuple[float, ...] | None:
    try:
        return tuple(map(float, _NUMBER.findall(words)))
    except ValueError:
        return None


def _objects(trace: Trace) -> list[tuple[Detect, DetectedObject]]:
    return [(call, thing) for call in trace.calls for thing in call.objects]
