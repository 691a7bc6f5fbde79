"""Every strategy on every family: decoding is the teacher-forced pass, packed is alone, saved is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.registry import get_backbone, list_backbones
from v1lit.data.encode.batch import Batch, collate, flatten
from v1lit.data.encode.encoding import Encoded
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import RevisitConfig
from v1lit.revisit.registry import list_strategies
from v1lit.testing.models import (
    inputs,
    mixed,
    processor,
    training_batch,
    training_examples,
    with_end,
)

FAMILIES = list_backbones()
CONTROLS = ("random_region", "other_image", "shuffled", "blank_copy", "noise_copy")


@dataclass(frozen=True)
class Case:
    """A strategy, or point_and_copy under a control."""

    name: str = "point_and_copy"
    options: dict[str, Any] = field(default_factory=dict)
    control: Any = "none"

    def build(self, family: str) -> PointAndCopyModel:
        torch.manual_seed(0)
        revisit = RevisitConfig(self.name, self.options, self.control)
        model = PointAndCopyModel.build(BackboneConfig(family), revisit=revisit)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if (parameter.ndim >= 2 and "norm" not in name) or name.startswith(
                    ("look.", "pointer_head.end")
                ):
                    parameter.mul_(4.0)
        return model.eval()


CASES = {
    **{name: Case(name) for name in list_strategies()},
    "detached": Case(options={"detach": True}),
    "suppressed": Case(options={"suppress": "trace"}),
    "ends": Case(options={"end": "pointer"}),
    "ends, shuffled": Case(options={"end": "pointer"}, control="shuffled"),
    "points only, ends": Case("point_only", {"end": "pointer"}),
    **{name: Case(control=name) for name in CONTROLS},
}


def batch_of(case: str, family: str, images: tuple[int, ...] = (1, 0, 2), packed: bool = False) -> Batch:
    """Examples of the family, whose runs end by a pointer where that is the case's way."""
    examples = training_examples(family, images)
    if CASES[case].options.get("end") == "pointer":
        examples = [with_end(example, family) for example in examples]
    return flatten(examples) if packed else collate(examples, processor(family).pad_token_id)


def test_all_strategies_are_here() -> None:
    assert {case.name for case in CASES.values()} == set(list_strategies())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_decoding_step_by_step_gives_the_states_of_the_teacher_forced_pass(case: str, family: str) -> None:
    model, batch = CASES[case].build(family), batch_of(case, family, (1,))
    ids = batch.input_ids
    whole = model(**inputs(batch)).logits
    begin = ids.shape[1] - 10
    assert (ids[0, begin:] >= model.config.pointer_start).any()
    out = model(ids[:, :begin], **batch.image_inputs, use_cache=True)
    positions = model._positions(model._without_pointers(ids), None, None, batch.image_inputs)
    for token in range(begin, ids.shape[1]):
        torch.testing.assert_close(out.logits[:, -1], whole[:, token - 1], atol=2e-4, rtol=1e-4)
        out = model(
            ids[:, token : token + 1],
            position_ids=positions[..., token : token + 1],
            cache=out.cache,
            pointer_memory=out.pointer_memory,
            use_cache=True,
        )
    torch.testing.assert_close(out.logits[:, -1], whole[:, -1], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name == "llava" else pytest.mark.slow) for name in FAMILIES]
)
@pytest.mark.parametrize("case", list_strategies())
def test_padded_rows_with_a_cache_say_what_each_says_alone_and_without(case: str, family: str) -> None:
    model, of = CASES[case].build(family), processor(family)
    model.pointer_head.query.weight.data.mul_(20.0)
    fixed: dict[str, Any] = {"max_new_tokens": 6, "eos_token_id": -1, "pad_token_id": 0, "do_sample": False}

    def said(prompts: Sequence[Encoded], use_cache: bool) -> torch.Tensor:
        batch = collate(prompts, of.pad_token_id, side="left")
        ids: torch.Tensor = model.generate(
            **inputs(batch), **fixed, use_cache=use_cache, encode_text=of.encode_text
        )
        return ids[:, batch.input_ids.shape[1] :]

    prompts = mixed(family, (1, 0))
    together = said(prompts, use_cache=True)
    for row, prompt in zip(together, prompts, strict=True):
        assert torch.equal(row, said([prompt], use_cache=False)[0])
    assert not model.strategy.points or (together >= model.config.pointer_start).any()


@pytest.mark.parametrize("family", [name for name in FAMILIES if get_backbone(name).packs])
@pytest.mark.parametrize("case", [name for name in CASES if name != "other_image"])
@torch.no_grad()
def test_packed_equals_alone(case: str, family: str) -> None:
    """Of `other_image` the other examples of the batch are what is copied."""
    model, packed, padded = (
        CASES[case].build(family),
        batch_of(case, family, packed=True),
        batch_of(case, family),
    )
    together, apart = (
        model(**inputs(batch), labels=batch.labels, reduction="none").loss for batch in (packed, padded)
    )
    torch.testing.assert_close(together, apart, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_saved_model_opens_with_its_strategy(case: str, family: str, tmp_path: Path) -> None:
    model, batch = CASES[case].build(family), batch_of(case, family)
    model.save_pretrained(tmp_path)
    opened = PointAndCopyModel.from_pretrained(tmp_path)
    for parameter in opened.parameters():
        parameter.data = parameter.data.clone()  # aligned in memory, on which last digits depend
    assert opened.strategy == model.strategy
    assert opened.config.revisit_options == model.config.revisit_options
    assert torch.equal(opened(**inputs(batch)).logits, model(**inputs(batch)).logits)


@pytest.mark.parametrize("case", CASES)
def test_every_weight_that_learns_gets_a_gradient(case: str) -> None:
    model, batch = CASES[case].build("qwen2_5_vl").train(), batch_of(case, "qwen2_5_vl")
    model(**inputs(batch), labels=batch.labels).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("case", ["point_only", *CONTROLS])
@torch.no_grad()
def test_what_is_copied_changes_what_follows_a_pointer_and_nothing_before(case: str) -> None:
    batch = training_batch("qwen2_5_vl", (1, 1))
    plain, other = (CASES[name].build("qwen2_5_vl") for name in ("point_and_copy", case))
    other.load_state_dict(plain.state_dict(), strict=False)
    first = int((batch.input_ids[0] >= plain.config.pointer_start).nonzero()[0])
    expected, found = plain(**inputs(batch)).logits[0], other(**inputs(batch)).logits[0]
    assert torch.equal(found[:first], expected[:first])
    assert not torch.allclose(found[first:], expected[first:], atol=1e-2)


def test_no_gradient_flows_through_a_detached_copy() -> None:
    batch = training_batch("qwen2_5_vl", (1,))
    flows = {}
    for case in ("point_and_copy", "detached"):
        model = CASES[case].build("qwen2_5_vl")
        layout = model._layout(batch.input_ids)
        values = torch.randn(layout.counts[0], 8, requires_grad=True)
        flows[case] = model._copies(values, layout).requires_grad
    assert flows == {"point_and_copy": True, "detached": False}


@torch.no_grad()
def test_a_model_whose_strategy_does_not_point_generates_no_pointer() -> None:
    batch = training_batch("qwen2_5_vl", (1,))
    for name, points in (("point_and_copy", True), ("coordinates", False), ("text_only", False)):
        model = CASES[name].build("qwen2_5_vl")
        model.pointer_head.query.weight.mul_(100)
        logits = model(**inputs(batch)).logits[..., model.config.pointer_start :]
        assert bool((logits > torch.finfo(logits.dtype).min).any()) is points


def test_a_control_is_applied_when_it_is_asked_for() -> None:
    batch = training_batch("qwen2_5_vl", (1,))
    states = {}
    for when in ("training", "decoding", "both"):
        torch.manual_seed(0)
        revisit = RevisitConfig(control="blank_copy", control_when=when)  # type: ignore[arg-type]
        model = PointAndCopyModel.build(BackboneConfig("qwen2_5_vl"), revisit=revisit)
        states[when] = (model.train().is_controlled, model.eval().is_controlled)
        model(**inputs(batch))
    assert states == {"training": (True, False), "decoding": (False, True), "both": (True, True)}
