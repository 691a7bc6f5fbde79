"""The end of a run as a choice of the pointer head: what is written, learned, generated and counted of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import load_processor
from v1lit.data.encode.batch import Batch, collate
from v1lit.errors import OptionError
from v1lit.inference.predictor import Predictor
from v1lit.inference.reading import read_answer
from v1lit.labels import END
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.published import save_published
from v1lit.revisit.config import RevisitConfig
from v1lit.revisit.multi_patch import MultiPatch
from v1lit.revisit.run_ends import RunEnds
from v1lit.revisit.suppression import Suppression
from v1lit.testing.models import (
    generate,
    inputs,
    mixed,
    processor,
    training_batch,
    training_examples,
    with_end,
)

FAMILY = "qwen2_5_vl"


def model_of(
    pointer: PointerConfig | None = None, name: str = "point_and_copy", points: float = 1.0, **options: Any
) -> PointAndCopyModel:
    """A tiny model whose runs end by a pointer, with large random weights; pointer logits times `points`."""
    torch.manual_seed(0)
    revisit = RevisitConfig(name, {"end": "pointer", **options})
    model = PointAndCopyModel.build(BackboneConfig(FAMILY), pointer, revisit)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if (parameter.ndim >= 2 and "norm" not in key) or key.startswith("pointer_head.end"):
                parameter.mul_(4.0)
        model.pointer_head.query.weight.mul_(points)
    return model.eval()


def pointing(**options: Any) -> PointAndCopyModel:
    """Such a model that likes to point, and to end a run."""
    model = model_of(points=6.0, **options)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.3)
        model.pointer_head.end_key.weight.mul_(3.0)
    return model


def batch_of(images: tuple[int, ...] = (1, 0, 2)) -> Batch:
    examples = [with_end(example, FAMILY) for example in training_examples(FAMILY, images)]
    return collate(examples, processor(FAMILY).pad_token_id)


# ------------------------------------------------------------------ the loss


def readable(model: PointAndCopyModel, batch: Batch) -> Tensor:
    """`[positions]`: position by position, `-log softmax` over the vocabulary, own patches and the end."""
    start, head = model.config.pointer_start, model.pointer_head
    layout = model._layout(batch.input_ids)
    text = model.get_input_embeddings()(model._without_pointers(batch.input_ids))
    values = model._encode(batch.image_inputs, text)
    embeds = text.clone()
    for row, ids in enumerate(batch.input_ids.tolist()):
        first = sum(layout.counts[:row])
        seen = 0
        for place, token in enumerate(ids):
            if token == model.config.image_token_id:
                embeds[row, place] = values[first + seen]
                seen += 1
            elif token == start + layout.counts[row]:
                embeds[row, place] = head.end_input.weight
            elif token >= start:
                embeds[row, place] = values[first + token - start]
    ids = model._without_pointers(batch.input_ids)
    positions = model._positions(ids, batch.attention_mask, None, batch.image_inputs)
    states = model.backbone.get_decoder()(
        inputs_embeds=embeds, position_ids=positions, attention_mask=batch.attention_mask, use_cache=False
    ).last_hidden_state
    losses = []
    for row, labels in enumerate(batch.labels.tolist()):
        own = states[row][batch.input_ids[row] == model.config.image_token_id]
        if model.pointer_options.key_source == "embedding":
            own = values[sum(layout.counts[:row]) :][: layout.counts[row]]
        keys = head.project_keys(own)
        if len(keys):
            keys = torch.cat([keys, head.end_key.weight[None]])
        for place, label in enumerate(labels[1:]):
            if label < 0:
                continue
            state = states[row, place]
            scores = (
                torch.stack([head.query(state) @ key * head.scale for key in keys]) if len(keys) else None
            )
            logits = model.get_output_embeddings()(state)
            gate = head.gate_values(state)
            if gate is not None:
                logits, scores = (1 - gate) * logits, None if scores is None else gate * scores
            logits = logits if scores is None else torch.cat([logits, scores])
            losses.append(F.cross_entropy(logits, torch.tensor(label)))
    return torch.stack(losses)


@pytest.mark.parametrize(
    "pointer",
    [
        PointerConfig(z_weight=0.0, loss_implementation="reference"),
        PointerConfig(z_weight=0.0, loss_implementation="chunked", loss_chunk=3),
        PointerConfig(
            z_weight=0.0,
            loss_implementation="chunked",
            loss_chunk=4,
            gate=True,
            key_source="embedding",
            width=8,
        ),
    ],
    ids=["reference", "chunked", "gate, embeddings, narrow"],
)
def test_the_loss_and_its_gradients_are_those_of_the_readable_one(pointer: PointerConfig) -> None:
    model, batch = model_of(pointer), batch_of()
    if model.pointer_head.gate is not None:
        torch.nn.init.normal_(model.pointer_head.gate.weight)
    ours, expected = (
        model(**inputs(batch), labels=batch.labels, reduction="none").loss,
        readable(model, batch),
    )
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    learned = dict(model.pointer_head.named_parameters())
    learned["lm_head"] = model.get_output_embeddings().weight
    assert {"end_key.weight", "end_input.weight"} <= learned.keys()
    mean = model(**inputs(batch), labels=batch.labels).loss
    found, true = (torch.autograd.grad(loss, list(learned.values())) for loss in (mean, expected.mean()))
    for name, one, other in zip(learned, found, true, strict=True):
        assert other.norm() > 0, name
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: name + text)


def test_what_a_batch_says_of_an_end_is_the_same_for_every_sequence() -> None:
    batch = batch_of()
    out = model_of()(**inputs(batch), labels=batch.labels)
    assert int((out.targets == END).sum()) == 2
    patches = out.targets[out.targets >= processor(FAMILY).pointer_start]
    assert len(patches) == 8


def test_an_end_is_predicted_as_an_end() -> None:
    batch, model = batch_of((1, 2)), model_of()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(**inputs(batch), labels=batch.labels).loss.backward()
        optimizer.step()
    out = model(**inputs(batch), labels=batch.labels)
    assert torch.equal(out.terms.predictions == END, out.targets == END)


def test_a_pointer_behind_the_end_is_refused() -> None:
    model, batch = model_of(), batch_of((1,))
    end = model.config.pointer_start + model._layout(batch.input_ids).counts[0]
    ids = batch.input_ids.masked_fill(batch.input_ids == end, end + 1)
    with pytest.raises(ValueError, match=f"image token {end + 1 - model.config.pointer_start}, but its seq"):
        model(ids, attention_mask=batch.attention_mask, **batch.image_inputs)


def test_without_the_choice_everything_is_as_it_was() -> None:
    """The same weights, state dict and numbers, to the bit, as of a model whose options do not name it."""
    batch, models = training_batch(FAMILY), []
    for options in ({}, {"end": "text"}, {"end": "pointer"}):
        torch.manual_seed(0)
        models.append(PointAndCopyModel.build(BackboneConfig(FAMILY), None, RevisitConfig(options=options)))
    states = [model.state_dict() for model in models]
    assert states[0].keys() == states[1].keys()
    assert states[2].keys() - states[0].keys() == {
        "pointer_head.end_key.weight",
        "pointer_head.end_input.weight",
    }
    assert all(torch.equal(value, state[name]) for state in states[1:] for name, value in states[0].items())
    losses = [model(**inputs(batch), labels=batch.labels).loss for model in models[:2]]
    assert torch.equal(*losses)
    assert models[0](**inputs(batch)).logits.shape[-1] + 1 == models[2](**inputs(batch)).logits.shape[-1]


# ------------------------------------------------------------------ decoding

START, IMAGE = 6, 5


def test_what_may_follow_a_patch_an_end_and_text() -> None:
    """Rows with 3, 3, 3, 1 and 0 images tokens; ids from 6 on are pointers."""
    rows = torch.tensor([[5, 5, 5, 1, 7], [5, 5, 5, 7, 9], [5, 5, 5, 7, 1], [5, 1, 1, 6, 7], [1, 1, 1, 1, 2]])
    found = RunEnds(START, IMAGE)(rows, torch.zeros(5, 10)).isfinite()
    everything, text = set(range(10)), set(range(6))
    expected = [{6, 7, 8, 9}, text, everything - {9}, text, everything - {6}]
    assert [set(row.nonzero()[:, 0].tolist()) for row in found] == expected


@pytest.mark.parametrize("within_run", [True, False])
def test_an_end_can_come_again_where_patches_cannot(within_run: bool) -> None:
    ids = torch.tensor([[5, 5, 5, 7, 9, 1, 6, 8]])
    gone = Suppression(START, within_run, IMAGE)(ids, torch.zeros(1, 10))[0].isinf().nonzero()[:, 0]
    assert gone.tolist() == ([6, 8] if within_run else [6, 7, 8])


@pytest.mark.parametrize("suppress", ["none", "region", "trace"])
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.5, "num_return_sequences": 4},
        {"num_beams": 3, "num_return_sequences": 3},
    ],
    ids=["greedy", "sampled", "beams"],
)
def test_a_generated_run_is_patches_then_the_end_then_text(options: dict[str, Any], suppress: str) -> None:
    batch = collate(mixed(FAMILY), processor(FAMILY).pad_token_id, side="left")
    model = pointing(suppress=suppress)
    start = model.config.pointer_start
    counts = (batch.input_ids == model.config.image_token_id).sum(1).tolist()
    rows = generate(model, batch, **options).tolist()
    kinds = []
    for number, row in enumerate(rows):
        end = start + counts[number * len(counts) // len(rows)]
        kinds.append("".join("t" if token < start else "e" if token == end else "p" for token in row))
        if suppress == "trace":
            patches = [token for token in row if token >= start and token != end]
            assert len(set(patches)) == len(patches)
    assert all(re.fullmatch("(t|p+e(?!e|p))*p*", kind) for kind in kinds), kinds
    assert any("pe" in kind for kind in kinds) or (suppress == "none" and not options.get("do_sample")), kinds
    assert all("p" not in kind and "e" not in kind for kind in kinds[len(kinds) // 3 : len(kinds) * 2 // 3])


def test_a_prediction_has_no_end_in_it() -> None:
    reader = Predictor(model_of(), load_processor(BackboneConfig(FAMILY)))
    start = reader.processor.pointer_start
    maps = (reader.processor.patch_map((112, 56)),)
    words = reader.processor.encode_text("</region>", special=False)
    end = start + len(maps[0])
    ids = [start + 1, start + 2, end, *words, start + 4, end]
    prediction = read_answer(ids, None, maps, 0, reader.processor, reader.model.strategy)
    assert prediction.text == "<|copy_1|><|copy_2|></region><|copy_4|>"
    assert prediction.pointers == ((1, 2), (4,))


def test_a_predictor_reads_the_runs_of_an_answer() -> None:
    ask = Predictor(pointing(suppress="trace"), load_processor(BackboneConfig(FAMILY)))

    def point(ids: Tensor, scores: Tensor) -> Tensor:
        return torch.cat([scores[:, : ask.processor.pointer_start] - 100, scores[:, -13:]], 1)

    prediction = ask(
        Image.new("RGB", (112, 84), "red"), "Where?", max_new_tokens=20, logits_processor=[point]
    )
    assert len(prediction.patch_maps[0]) == 12
    assert len(prediction.pointers) > 1
    patches = [token for run in prediction.pointers for token in run]
    assert len(set(patches)) == len(patches)
    assert max(patches) < 12
    assert "<|copy_12|>" not in prediction.text


# ------------------------------------------------------------------ where it cannot be


def test_patches_that_follow_by_themselves_need_no_end() -> None:
    with pytest.raises(OptionError, match="patches over the threshold follow"):
        MultiPatch(end="pointer")


def test_the_published_layout_has_no_place_for_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no place for the end of a run"):
        save_published(model_of(), tmp_path / "out")
    assert not list(tmp_path.iterdir())
