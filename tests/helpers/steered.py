"""Rules of steering, each with a check of what was said under it."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import groupby

import torch
from torch import Tensor

from v1lit.data.encode.encoding import Encoded
from v1lit.grounding.markup import CALL, CALL_END
from v1lit.grounding.patch_map import region_tokens
from v1lit.grounding.region import Region
from v1lit.grounding.trace import parse_trace
from v1lit.steering import Steering, Vocabulary
from v1lit.testing.models import mixed, processor

FAMILY = "qwen2_5_vl"
PROCESSOR = processor(FAMILY)
VOCABULARY = Vocabulary.of(PROCESSOR)
START, STOP = PROCESSOR.pointer_start, PROCESSOR.stop_token_id
HERE, THERE = (0, 0, 40, 40), (30, 30, 60, 90)
QUERY = re.compile(r'detect\(query="(?:\\.|[^"\\])*', re.DOTALL)
Said = list[int]
Check = Callable[[Said, Encoded], None]


def runs(said: Said, start: int = START) -> list[list[int]]:
    """The runs of pointers of what was said, as image tokens."""
    return [
        [token - start for token in some]
        for points, some in groupby(said, key=start.__le__)
        if points
    ]  # fmt: skip


def pointed(said: Said) -> list[int]:
    """All image tokens that were pointed at."""
    return [patch for run in runs(said) for patch in run]


def text_of(said: Said) -> str:
    return PROCESSOR.decode(said[: said.index(STOP)] if STOP in said else said)


def last_call(text: str) -> int:
    """Where the last call begins, -1 for none."""
    return max((found.start() for found in re.finditer(rf"(?<!\\){re.escape(CALL)}", text)), default=-1)


def only_inside(said: Said, prompt: Encoded) -> None:
    assert set(pointed(said)) <= set(region_tokens(prompt.patch_maps, Region.from_box(HERE)))


def never_outside(said: Said, prompt: Encoded) -> None:
    assert not set(pointed(said)) & set(region_tokens(prompt.patch_maps, Region.from_box(THERE)))


def no_pointers(said: Said, prompt: Encoded) -> None:
    assert runs(said) == []


def two_looks(said: Said, prompt: Encoded) -> None:
    assert len(runs(said)) <= 2


def three_pointers(said: Said, prompt: Encoded) -> None:
    assert all(len(run) <= 3 for run in runs(said))


def near(boxes: Tensor, one: int, other: int) -> bool:
    """Whether two patches of one image share an edge or a corner."""
    a, b = boxes[one], boxes[other]
    return bool(((a[:2] <= b[2:] + 1e-6) & (b[:2] <= a[2:] + 1e-6)).all())


def hang_together(said: Said, prompt: Encoded) -> None:
    boxes = torch.cat([torch.tensor(patch_map.boxes) for patch_map in prompt.patch_maps])
    image = [n for n, patch_map in enumerate(prompt.patch_maps) for _ in range(len(patch_map))]
    for run in runs(said):
        for at, patch in enumerate(run[1:], 1):
            assert any(near(boxes, patch, one) and image[patch] == image[one] for one in run[:at])


def each_once_in_a_run(said: Said, prompt: Encoded) -> None:
    assert all(len(set(run)) == len(run) for run in runs(said))


def each_once(said: Said, prompt: Encoded) -> None:
    everything = pointed(said)
    assert len(set(everything)) == len(everything)


def well_formed(said: Said, prompt: Encoded) -> None:
    """All of it where it came to its end; else all but what breaks off."""
    text = text_of(said)
    problems = parse_trace(text).problems
    last = last_call(text)  # may break off
    assert all(STOP not in said and problem.start >= last for problem in problems), text
    marks = QUERY.sub("", text)  # in which they are words
    assert marks.count("<region>") - marks.count("</region>") in (0, int(STOP not in said))


def looks_often(said: Said, prompt: Encoded) -> None:
    """What is further than 12 tokens from the last pointer belongs to a call that has not ended."""
    well_formed(said, prompt)
    said = said[: said.index(STOP)] if STOP in said else said
    texts = [list(some) for points, some in groupby(said, key=START.__le__) if not points]
    for tokens in texts:
        if len(tokens) > 12:
            text, early = PROCESSOR.decode(tokens), len(PROCESSOR.decode(tokens[:12]))
            begun = last_call(text)
            if begun >= 0:
                assert begun <= early, text
                assert parse_trace(text[begun:]).problems, text
            elif CALL_END in text:  # of the call that the last pointer stands in
                assert any(CALL.startswith(text[at:]) for at in range(early + 1)), text


QUERIES = ("the red circle", 'a "b" \\ detect(c')


def asks(said: Said, prompt: Encoded) -> None:
    """The first two calls follow each other, ask for these, and point at something before they end."""
    well_formed(said, prompt)
    parsed = parse_trace(text_of(said))
    for query, part in zip(QUERIES, parsed.trace.parts, strict=False):
        if isinstance(part, str):
            assert CALL.startswith(part[: len(CALL)]), part
            return
        assert part.query == query
        if parsed.problems:
            return
        assert any(thing.tokens for thing in part.objects)


RULES: dict[str, tuple[Steering, Check]] = {
    "inside": (Steering(inside=[HERE]), only_inside),
    "outside": (Steering(outside=[THERE]), never_outside),
    "no pointing": (Steering(points=False), no_pointers),
    "budget": (Steering(max_looks=2), two_looks),
    "pointers of an object": (Steering(max_pointers=3), three_pointers),
    "connected": (Steering(connected=True), hang_together),
    "distinct": (Steering(distinct=True), each_once_in_a_run),
    "once": (Steering(once=True), each_once),
    "grammar": (Steering(grammar=True), well_formed),
    "look every": (Steering(look_every=12), looks_often),
    "queries": (Steering(queries=QUERIES), asks),
}


def prompts(images: tuple[int, ...] = (1, 2)) -> list[Encoded]:
    return mixed(FAMILY, images)
