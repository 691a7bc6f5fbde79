"""The best of several sampled answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from v1lit.errors import OptionError, name_allowed
from v1lit.inference.prediction import Prediction

ChooseBy = str | Callable[[Prediction], float]
"""`likelihood`, `agreement`, or one's own function, of whose values the largest is the best."""
RULES = ("likelihood", "agreement")


def best_of(predictions: Sequence[Prediction], choose_by: ChooseBy) -> Prediction:
    """The best of some answers to one question; of equal ones the first.

    - `likelihood`: the largest `score`, the mean logarithm of the probability of an answer's tokens
    - `agreement`: the largest `score` among those whose `answer` is the most frequent one, letter case and
      outer spaces aside; an answer without marks counts with its text. Source: arXiv 2203.11171

    Raises OptionError for another rule.
    """
    if callable(choose_by):
        return max(predictions, key=choose_by)
    if choose_by not in RULES:
        raise OptionError("choose_by", choose_by, f"give a function, or: {name_allowed(choose_by, RULES)}")
    if choose_by == "agreement":
        votes = Counter(map(_said, predictions))
        most = max(votes.values())
        predictions = [one for one in predictions if votes[_said(one)] == most]
    return max(predictions, key=_likelihood)


def sampled(count: int, options: dict[str, object]) -> dict[str, object]:
    """Options of `generate` for that many answers to choose from. Raises OptionError for what excludes it."""
    if count < 1:
        raise OptionError("best_of", count, "give 1 or more")
    if count == 1:
        return options
    for name, allowed in (
        ("num_beams", 1),
        ("num_return_sequences", 1),
        ("do_sample", True),
    ):
        if options.get(name) not in (None, allowed):
            why = f"best_of={count} samples that many answers and returns one: leave {name} out"
            raise OptionError(name, options[name], why)
    return {**options, "do_sample": True, "num_return_sequences": count}


def _likelihood(prediction: Prediction) -> float:
    return -float("inf") if prediction.score is None else prediction.score


def _said(prediction: Prediction) -> str:
    said = prediction.text if prediction.answer is None else prediction.answer
    return said.strip().casefold()
