"""What a trained model does on held-out examples when it has to say everything itself."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from v1lit.data.datamodule import V1DataModule
from v1lit.data.example import Example, Message
from v1lit.data.example.marks import words_of
from v1lit.data.images import decode_image
from v1lit.grounding.draw import panel
from v1lit.grounding.markup import REGION_NAME
from v1lit.grounding.patch_map import region_tokens, token_ranges
from v1lit.inference.prediction import Prediction
from v1lit.inference.predictor import Predictor
from v1lit.inference.prompt import about_first, asked_first
from v1lit.training.config import RunConfig

MOST_GROUPS = 64
"""Groups of held-out examples that are told apart at most: sources that name each example tell nothing."""


@dataclass(frozen=True)
class HeldOutAnswer:
    """What the model answered to a held-out question, and where it should have pointed first."""

    example: Example
    question: tuple[Message, ...]
    """The conversation up to the first answer."""
    prediction: Prediction
    truth: frozenset[int]
    """Image tokens of the first region of the first answer; none where it names no region that is seen."""
    truth_name: str | None
    answer: str | None

    @property
    def is_right(self) -> bool:
        """Whether the generated answer is the true one, letter case aside."""
        return (self.prediction.answer or "").lower() == (self.answer or "").lower()

    @property
    def tokens(self) -> int:
        """Image tokens of the example."""
        return sum(map(len, self.prediction.patch_maps))

    @property
    def first_run(self) -> tuple[int, ...]:
        return self.prediction.pointers[0] if self.prediction.pointers else ()


def overlap(a: frozenset[int], b: frozenset[int]) -> float:
    """Intersection over union of two sets of image tokens; 0 for two empty ones."""
    return len(a & b) / max(1, len(a | b))


def ask_held_out(predictor: Predictor, data: V1DataModule, run: RunConfig) -> list[HeldOutAnswer]:
    """Generate for the first `run.report_examples` held-out examples of a run; tells which were left out."""
    bad: list[str] = []
    coordinates = data.encoding.coordinates
    with torch.inference_mode():
        answers = list(answer_held_out(predictor, data.examples("val"), run, bad.append, coordinates))
    if bad:
        sys.stderr.write(f"left out of the report, {len(bad)} examples; the first: {bad[0]}\n")
    return answers


def answer_held_out(
    predictor: Predictor,
    held_out: Iterable[Example],
    run: RunConfig,
    left_out: Callable[[str], object],
    coordinates: bool = False,
) -> Iterator[HeldOutAnswer]:
    """Generate for the first `run.report_examples` of some examples.

    Regions in questions are written as in training, with their boxes where `coordinates` says so.
    One that cannot be asked, with a damaged image for instance, is left out and told to `left_out`.
    """
    examples = iter(islice(held_out, run.report_examples))
    while chunk := list(islice(examples, run.report_batch_size)):
        try:
            yield from _ask(predictor, chunk, run, coordinates)
        except ValueError:  # it does not say which one
            for example in chunk:
                try:
                    yield from _ask(predictor, [example], run, coordinates)
                except ValueError as error:
                    left_out(f"{example.id}: {error}")


def _ask(
    predictor: Predictor, chunk: Sequence[Example], run: RunConfig, coordinates: bool
) -> list[HeldOutAnswer]:
    asked = [([image.data for image in e.images], about_first(e, coordinates)) for e in chunk]
    predictions = predictor.batch(asked, max_new_tokens=run.report_max_new_tokens)
    return [_answer(*parts) for parts in zip(chunk, map(asked_first, chunk), predictions, strict=True)]


def score(answers: Sequence[HeldOutAnswer], seed: int = 0) -> dict[str, float]:
    """Means over the held-out examples whose first answer has a region, and chance levels beside them.

    - `val/pointer_first_in_region`: share in which the first generated pointer lies in the true region
    - `val/region_iou`: patches of the first generated run against the true ones
    - `chance/pointer_first_in_region`: the same share for a pointer drawn evenly from the image's tokens
    - `chance/region_iou`: the overlap with the true region of another held-out example, drawn at random,
      shifted into the image where it has fewer tokens
    - `val/answer_accuracy`: share of all examples whose generated answer is the true one, letter case aside
    - `val/answer_accuracy/GROUP` and `val/examples/GROUP`: the same for every group of `groups_of`
    """
    pointed = [answer for answer in answers if answer.truth]
    answered = [answer for answer in answers if answer.answer is not None]
    scores = {"val/examples": float(len(answers)), "val/examples_with_region": float(len(pointed))}
    if pointed:
        scores |= {
            "val/pointer_first_in_region": _mean(not a.truth.isdisjoint(a.first_run[:1]) for a in pointed),
            "val/region_iou": _mean(overlap(frozenset(a.first_run), a.truth) for a in pointed),
            "chance/pointer_first_in_region": _mean(len(answer.truth) / answer.tokens for answer in pointed),
            "chance/region_iou": _chance_iou(pointed, random.Random(seed)),
        }
    if answered:
        scores["val/answer_accuracy"] = _mean(answer.is_right for answer in answered)
    for group, members in groups_of(answered).items():
        scores[f"val/answer_accuracy/{group}"] = _mean(answer.is_right for answer in members)
        scores[f"val/examples/{group}"] = float(len(members))
    return scores


def groups_of(answers: Sequence[HeldOutAnswer]) -> dict[str, list[HeldOutAnswer]]:
    """Answers by the sources of their examples, sorted; empty where there is one source, or very many.

    Of `synthetic/trail/steps=2/looks=3` the groups are `synthetic/trail`, and in it `steps=2` and `looks=3`.
    """
    groups: dict[str, list[HeldOutAnswer]] = {}
    for answer in answers:
        parts = answer.example.source.split("/")
        name = "/".join(part for part in parts if "=" not in part)
        for group in (name, *(f"{name}/{part}" for part in parts if "=" in part)):
            groups.setdefault(group, []).append(answer)
    return dict(sorted(groups.items())) if 1 < len(groups) <= MOST_GROUPS and "" not in groups else {}


def draw_pictures(answers: Sequence[HeldOutAnswer], folder: Path) -> list[Path]:
    """One PNG per example: image, question, generated trace, pointed patches and true region."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, answer in enumerate(answer for answer in answers if answer.example.images):
        truth = answer.example.regions.get(answer.truth_name or "")
        image = truth.image if truth is not None else 0
        patch_maps = answer.prediction.patch_maps
        span = token_ranges(patch_maps)[image]
        picture = panel(
            decode_image(answer.example.images[image]),
            words_of(answer.question[-1].content),
            answer.prediction.text,
            patch_map=patch_maps[image],
            tokens=[token - span.start for token in answer.first_run if token in span],
            truth=[] if truth is None else [truth],
        )
        path = folder / f"{index:02d}.png"
        picture.save(path)
        paths.append(path)
    return paths


def _answer(example: Example, question: tuple[Message, ...], prediction: Prediction) -> HeldOutAnswer:
    reply = example.messages[len(question)].content
    names = REGION_NAME.findall(reply)
    truth = region_tokens(prediction.patch_maps, example.regions[names[0]]) if names else ()
    single = sum(message.role == "assistant" for message in example.messages) == 1
    return HeldOutAnswer(
        example=example,
        question=question,
        prediction=prediction,
        truth=frozenset(truth),
        truth_name=names[0] if names else None,
        answer=example.answer if single else None,
    )


def _chance_iou(answers: Sequence[HeldOutAnswer], rng: random.Random) -> float:
    others = list(answers)
    rng.shuffle(others)
    return _mean(
        overlap(answer.truth, frozenset(token % answer.tokens for token in other.truth))
        for answer, other in zip(answers, others[1:] + others[:1], strict=True)
    )


def _mean(values: Iterator[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
