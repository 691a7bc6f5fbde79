"""Answers of drawn tasks are balanced, and the question alone says nothing about them."""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from functools import cache
from typing import Any

import pytest

from v1lit.data.synthetic import TASKS
from v1lit.data.synthetic.tasks import make_task, ranges_of

EXAMPLES = 2400
SMALL = (112, 112)
Asked = list[tuple[str, str]]
"""Question and answer of each example."""


@cache
def asked(task: str) -> tuple[tuple[str, str], ...]:
    ranges, found = ranges_of(task, {}), []
    for k in range(EXAMPLES):
        turn = make_task(random.Random(f"{task} {k}"), task, SMALL, ranges)[1]
        found.append((turn.question, turn.answer))
    return tuple(found)


COLORS6 = ("red", "green", "blue", "yellow", "purple", "orange")
COLORS4 = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle", "diamond")


def group(task: str, question: str) -> tuple[str, ...]:
    """The answers that a question admits, worked out from its words."""
    if task == "trail":
        return COLORS6
    if task == "pair":
        return ("ringed", "framed")
    if task == "total":
        bars = question.count(" bar")
        return tuple(str(n) for n in range(bars, 5 * bars + 1))
    return SHAPES if question.endswith("circle.") else COLORS4


CHI_SQUARE = {1: 10.83, 3: 16.27, 4: 18.47, 5: 20.52, 8: 26.12}
"""Degrees of freedom -> what evenly drawn counts exceed once in a thousand times."""


def chi_square(counts: list[int]) -> float:
    even = sum(counts) / len(counts)
    return sum((count - even) ** 2 / even for count in counts)


@pytest.mark.parametrize("task", TASKS)
def test_all_answers_that_a_question_admits_are_equally_frequent(task: str) -> None:
    answers: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for question, answer in asked(task):
        assert answer in group(task, question)
        answers[group(task, question)][answer] += 1
    assert len(answers) == {"trail": 1, "pair": 1, "total": 2, "recall": 2}[task]
    for admitted, counts in answers.items():
        assert chi_square([counts[a] for a in admitted]) < CHI_SQUARE[len(admitted) - 1], counts
    sizes = [counts.total() for counts in answers.values()]
    assert chi_square(sizes) < CHI_SQUARE[1] if len(sizes) == 2 else sizes == [EXAMPLES]


def test_each_difficulty_is_as_frequent_as_the_others_and_as_balanced() -> None:
    by_steps: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in asked("trail"):
        by_steps[re.findall(r"(\d) arrow", question)[0]][answer] += 1
    totals = [counts.total() for counts in by_steps.values()]
    assert sorted(by_steps) == ["1", "2", "3"]
    assert all(total == pytest.approx(EXAMPLES / 3, rel=0.12) for total in totals)
    for counts in by_steps.values():
        assert chi_square([counts[color] for color in COLORS6]) < CHI_SQUARE[5]


# --- guessing without the picture --------------------------------------------------------------------------


def by_question(train: Asked, test: Asked) -> float:
    """Accuracy of the most frequent answer to the very same question, else of the most frequent of all."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in train:
        counts[question][answer] += 1
    overall = Counter(answer for _, answer in train).most_common(1)[0][0]
    guesses = [counts[q].most_common(1)[0][0] if counts[q] else overall for q, _ in test]
    return sum(guess == answer for guess, (_, answer) in zip(guesses, test, strict=True)) / len(test)


def by_words(train: Asked, test: Asked) -> float:
    """Accuracy of a naive Bayes guesser over words and how often each occurs."""
    priors = Counter(answer for _, answer in train)
    counts: dict[str, Counter[Any]] = defaultdict(Counter)
    for question, answer in train:
        counts[answer].update(_words(question))

    def guess(question: str) -> str:
        def plausible(answer: str) -> float:
            likely = [(counts[answer][w] + 1) / (priors[answer] + 2) for w in _words(question)]
            return math.log(priors[answer]) + sum(map(math.log, likely))

        return max(priors, key=plausible)

    return sum(guess(question) == answer for question, answer in test) / len(test)


def _words(question: str) -> list[tuple[str, int]]:
    return list(Counter(re.findall(r"\w+", question)).items())


@pytest.mark.parametrize("guesser", [by_question, by_words])
@pytest.mark.parametrize("task", TASKS)
def test_who_reads_only_the_question_scores_chance(task: str, guesser: Any) -> None:
    train, test = list(asked(task)[: EXAMPLES // 2]), list(asked(task)[EXAMPLES // 2 :])
    chance = sum(1 / len(group(task, question)) for question, _ in test) / len(test)
    deviation = math.sqrt(chance * (1 - chance) / len(test))
    assert guesser(train, test) <= chance + 3 * deviation


@pytest.mark.parametrize("guesser", [by_question, by_words])
def test_the_guessers_would_notice(guesser: Any) -> None:
    rng = random.Random(0)
    answers = [rng.choice(COLORS6) for _ in range(1200)]
    told = [(f"The node is {'old' if answer in COLORS6[:3] else 'new'}.", answer) for answer in answers]
    assert guesser(told[:600], told[600:]) > 1 / 6 + 0.1


def test_objects_that_are_not_asked_about_have_any_colour_and_shape() -> None:
    kinds: Counter[str] = Counter()
    for k in range(200):
        scene, _, _ = make_task(random.Random(k), "recall", SMALL, ranges_of("recall", {}))
        kinds.update(f"{item.color} {item.shape}" for item in scene.items[2:])
    assert set(kinds) == {f"{color} {shape}" for color in COLORS4 for shape in SHAPES}
    assert max(kinds.values()) < 1.4 * min(kinds.values())


def test_neither_mark_says_which_die_shows_more_nor_does_a_single_one() -> None:
    """Whatever one die shows, the other may be higher or lower, but for 1 and 6; and dice around show all."""
    higher: dict[float, Counter[str]] = defaultdict(Counter)
    around: Counter[float] = Counter()
    for k in range(400):
        scene, turn, _ = make_task(random.Random(k), "pair", SMALL, ranges_of("pair", {}))
        higher[scene.items[0].value][turn.answer] += 1
        around.update(item.value for item in scene.items[2:])
    assert all(len(counts) == (1 if value in (1, 6) else 2) for value, counts in higher.items())
    assert set(higher) == set(around) == {1, 2, 3, 4, 5, 6}
    assert max(around.values()) < 1.3 * min(around.values())


def test_a_trail_cannot_be_cut_short() -> None:
    """The node at the end is not the nearest, not the only one without an arrow, and seldom a neighbour."""
    nearest = 0
    for k in range(300):
        scene, turn, _ = make_task(random.Random(k), "trail", SMALL, ranges_of("trail", {"steps": 3}))
        start = next(step for step in turn.steps if not isinstance(step, str)).items[0]
        end = next(item for item in scene.items if item.color == turn.answer)
        others = [item for item in scene.items if item is not start]
        closest = min(others, key=lambda item: math.dist(item.centre, start.centre))
        nearest += closest is end
        assert sorted(a for a, _ in scene.arrows) == list(range(len(scene.items)))
    assert nearest / 300 < 0.35
