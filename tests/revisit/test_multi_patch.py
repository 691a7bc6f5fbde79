"""All patches of a region in one decoding step: what is learned of them, and what follows a pointer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from v1lit.backbones.config import BackboneConfig
from v1lit.data.encode.batch import Batch, collate, flatten
from v1lit.data.encode.encoding import Encoded
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.joint_loss import Pointers
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.region_loss import RegionTargets, region_losses
from v1lit.revisit.config import RevisitConfig
from v1lit.revisit.multi_patch import Burst, MultiPatch
from v1lit.testing.models import generate, inputs, mixed, processor, training_examples

FAMILY = "qwen2_5_vl"


def model_of(pointer: PointerConfig | None = None, **options: Any) -> PointAndCopyModel:
    torch.manual_seed(0)
    revisit = RevisitConfig("multi_patch", options)
    model = PointAndCopyModel.build(BackboneConfig(FAMILY), pointer, revisit)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "norm" not in name:
                parameter.mul_(4.0)
    return model.eval()


def first_only(example: Encoded) -> Encoded:
    """The example as `multi_patch` writes it: of its run the first pointer alone is a label."""
    start = processor(FAMILY).pointer_start
    pointers = (example.labels >= start).nonzero()[1:, 0]
    example.labels[pointers] = -100
    return example


def examples(images: tuple[int, ...] = (1, 0, 2)) -> list[Encoded]:
    return [first_only(example) for example in training_examples(FAMILY, images)]


def padded(some: list[Encoded]) -> Batch:
    return collate(some, processor(FAMILY).pad_token_id)


# ------------------------------------------------------------------ the loss


def readable(pointers: Pointers, gate: Tensor | None, regions: list[tuple[int, int, set[int]]]) -> Tensor:
    """The mean of every region's `-log p`, patch by patch: `(position, sequence, patches)` each."""
    losses = []
    for position, sequence, patches in regions:
        begin = sum(pointers.image_tokens[:sequence])
        terms = []
        for token in range(pointers.image_tokens[sequence]):
            score = (pointers.queries[position] * pointers.keys[begin + token]).sum() * pointers.scale
            score = score if gate is None else score * gate[position, 0]
            p = 1 / (1 + torch.exp(-score))
            terms.append(-torch.log(p if token in patches else 1 - p))
        losses.append(sum(terms) / len(terms))
    return torch.stack(losses)  # type: ignore[arg-type]


# Three sequences of 3, 0 and 2 image tokens; ids from 100 on are pointers.
IDS = torch.tensor([[1, 101, 100, 2, 100, 3, 7, 8, 9, 5, 101, 6, 101]])
LABELS = torch.tensor([[-100, 101, -100, 2, 100, 3, -100, 8, 9, -100, 101, 6, -100]])
SEQUENCE = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]])
REGIONS = [(0, 0, {0, 1}), (2, 0, {0}), (6, 2, {1})]
"""By position, sequence and patches; the last run of pointers is not learned."""


@pytest.mark.parametrize("gated", [False, True])
def test_the_loss_of_regions_and_its_gradient_are_those_of_the_readable_one(gated: bool) -> None:
    torch.manual_seed(0)
    queries = torch.randn(8, 4, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    gate = torch.rand(8, 1, dtype=torch.float64, requires_grad=True) if gated else None
    pointers = Pointers(queries, keys, (4, 2, 2), (3, 0, 2), 0.7)
    targets = RegionTargets.of(IDS, LABELS, SEQUENCE, 100)
    weights = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    learned = [queries, keys, *([] if gate is None else [gate])]
    expected, found = readable(pointers, gate, REGIONS), region_losses(pointers, gate, targets)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found @ weights, learned),
        torch.autograd.grad(expected @ weights, learned),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    assert torch.autograd.gradcheck(
        lambda q, k: region_losses(Pointers(q, k, (4, 2, 2), (3, 0, 2), 0.7), None, targets), (queries, keys)
    )


def test_a_part_of_the_positions_has_its_regions_and_patches() -> None:
    targets = RegionTargets.of(IDS, LABELS, SEQUENCE, 100)
    assert targets.rows.tolist() == [position for position, _, _ in REGIONS]
    part = targets.part(slice(1, 7))
    assert (part.rows.tolist(), part.owners.tolist()) == ([1, 5], [0, 2])
    assert (part.region.tolist(), part.token.tolist()) == ([0, 1], [0, 1])
    assert len(targets.part(slice(3, 3)).rows) == 0


OPTIONS = [
    PointerConfig(),
    PointerConfig(gate=True, key_source="embedding", first_pointer_weight=2.0),
    PointerConfig(loss="separate", z_weight=0.0),
]


@pytest.mark.parametrize("pointer", OPTIONS, ids=["plain", "gate", "separate"])
def test_batches_with_a_common_normalizer_add_up_to_one_big_batch(pointer: PointerConfig) -> None:
    model, one_by_one = model_of(pointer, weight=3.0).train(), examples((1, 0, 2, 1))
    big = padded(one_by_one)
    out = model(**inputs(big), labels=big.labels)
    torch.testing.assert_close(out.loss, torch.stack(list(out.losses.values())).sum())
    assert out.losses["regions"] > 0
    expected = torch.autograd.grad(out.loss, list(model.parameters()))
    counts = out.terms.counts
    names = [name for name in counts if name != "z"]
    assert counts["regions"] == 3
    normalizer = torch.stack([counts[name] for name in names])
    for pieces in ([one_by_one[:1], one_by_one[1:]], [[one] for one in one_by_one]):
        model.zero_grad()
        for piece in pieces:
            batch = flatten(piece)
            model(**inputs(batch), labels=batch.labels, normalizer=normalizer).loss.backward()
        for parameter, value in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, value, atol=2e-5, rtol=1e-3)


def test_the_loss_of_regions_is_added_where_the_first_pointer_is_predicted() -> None:
    batch = padded(examples((1,)))
    plain, weighty = (
        model_of(weight=weight)(**inputs(batch), labels=batch.labels, reduction="none")
        for weight in (1e-9, 2.0)
    )
    more = (weighty.loss - plain.loss).detach()
    at = plain.targets >= processor(FAMILY).pointer_start
    assert int(at.sum()) == 1
    torch.testing.assert_close(more[at].sum(), weighty.losses["regions"])
    torch.testing.assert_close(more[~at], torch.zeros_like(more[~at]))


def test_a_normalizer_without_regions_is_refused() -> None:
    batch = padded(examples((1,)))
    with pytest.raises(ValueError, match=r"the number of regions last; this has \[\]"):
        model_of()(**inputs(batch), labels=batch.labels, normalizer=torch.tensor(3.0))


def test_learning_finds_all_patches_of_a_region() -> None:
    """Of an example seen again and again, all patches get over the threshold and no other does."""
    model, (example,) = model_of().train(), examples((1,))
    batch, start = padded([example]), processor(FAMILY).pointer_start
    optimizer = torch.optim.Adam(model.pointer_head.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(**inputs(batch), labels=batch.labels).loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits = model(**inputs(batch)).logits[0]
    first = int((example.labels >= start).nonzero()[0])
    found = set((logits[first - 1, start:].sigmoid() > 0.5).nonzero()[:, 0].tolist())
    pointers = example.input_ids[example.input_ids >= start] - start
    assert found == set(pointers.tolist())


# ------------------------------------------------------------------ decoding

START = 3


def scores(*pointers: float) -> Tensor:
    return torch.tensor([[0.0, 0.1, 0.2, *pointers]])


def test_patches_over_the_threshold_follow_row_by_row_and_then_text() -> None:
    burst = Burst(START, 0.5)
    ids, step = torch.tensor([[1, 2]]), scores(-1.0, 2.0, 1.0, -0.5, 0.5)
    assert torch.equal(burst(ids, step), step)
    forced = []
    for token in (5, 4, 7):  # the one chosen is not the first of them
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
        found = burst(ids, scores(9.0, 9.0, 9.0, 9.0, 9.0))
        forced.append(found.isfinite().nonzero()[:, 1].tolist())
    assert forced == [[4], [7], [0, 1, 2]]
    ids = torch.cat([ids, torch.tensor([[2]])], 1)
    other = scores(-1.0, -1.0, -1.0, 3.0, -1.0)
    assert torch.equal(burst(ids, other), other)
    ids = torch.cat([ids, torch.tensor([[6]])], 1)
    assert burst(ids, step).isfinite().nonzero()[:, 1].tolist() == [0, 1, 2]  # it was alone over it


def test_of_too_many_patches_those_of_the_highest_scores_follow() -> None:
    burst, ids = Burst(START, 0.5, most=2), torch.tensor([[1]])
    burst(ids, scores(1.0, 2.0, 3.0))
    ids = torch.tensor([[1, 4]])
    assert burst(ids, scores(1.0, 2.0, 3.0)).isfinite().nonzero()[:, 1].tolist() == [5]
    ids = torch.tensor([[1, 4, 5]])
    assert burst(ids, scores(1.0, 2.0, 3.0)).isfinite().nonzero()[:, 1].tolist() == [0, 1, 2]


def test_a_run_that_a_prompt_ends_with_is_over_and_rows_without_images_are_as_they_were() -> None:
    ids = torch.tensor([[1, 4]])
    assert Burst(START, 0.5)(ids, scores(1.0, 2.0)).isfinite().nonzero()[:, 1].tolist() == [0, 1, 2]
    assert torch.equal(Burst(START, 0.5)(ids[:, :1], scores()), scores())


@pytest.mark.parametrize(
    "options",
    [{"do_sample": False}, {"do_sample": True, "temperature": 0.5, "num_return_sequences": 4}],
    ids=["greedy", "sampled"],
)
@torch.no_grad()
def test_generated_runs_are_what_the_step_before_them_chose(options: dict[str, Any]) -> None:
    model = model_of(threshold=0.9, max_copies=3)
    model.pointer_head.query.weight.mul_(6.0)
    batch = collate(mixed(FAMILY, (1, 0, 2)), processor(FAMILY).pad_token_id, side="left")
    start, out = model.config.pointer_start, generate(model, batch, **options)
    rows = len(out) // len(batch.input_ids)
    longest = 0
    for index, row in enumerate(out.tolist()):
        single = mixed(FAMILY, (1, 0, 2))[index // rows]
        ids = torch.cat([single.input_ids, torch.tensor(row)])[None]
        logits = model(ids, **single.image_inputs).logits[0, len(single.input_ids) - 1 : -1]
        step = 0
        while step < len(row):
            if row[step] < start:
                step += 1
                continue
            stop = next((at for at in range(step, len(row)) if row[at] < start), len(row))
            run, chances = row[step:stop], logits[step, start:].sigmoid()
            best = chances.topk(min(3, len(chances))).indices.tolist()
            chosen = [start + one for one in sorted(best) if chances[one] > 0.9 and start + one != run[0]]
            expected = [run[0], *chosen][:3]
            assert run == (expected if stop < len(row) else expected[: len(run)])
            longest, step = max(longest, len(run)), stop
    assert longest == 3


def test_beams_are_refused_by_name() -> None:
    model = model_of()
    batch = collate(mixed(FAMILY, (1,)), processor(FAMILY).pad_token_id, side="left")
    with pytest.raises(ValueError, match=r"multi_patch.*num_beams=1"):
        generate(model, batch, num_beams=2)
    model.generation_config.num_beams = 2
    with pytest.raises(ValueError, match=r"multi_patch.*num_beams=1"):
        generate(model, batch)


@pytest.mark.parametrize("options", [{"threshold": 1.0}, {"threshold": 0.0}, {"weight": 0.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        MultiPatch(**options)
