"""`replay`: the image's tokens are put in again behind a call, in training and at decoding alike."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from helpers.pictures import encoded as picture_file
from torch import Tensor
from transformers import LogitsProcessor

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor, load_processor
from v1lit.backbones.registry import list_backbones
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.batch import Batch, collate
from v1lit.data.encode.encoding import Encoded, encode
from v1lit.data.example import Example, Message
from v1lit.data.images import read_header
from v1lit.data.lengths.length import measure
from v1lit.errors import OptionError
from v1lit.grounding.region import Region
from v1lit.inference.predictor import Predictor
from v1lit.inference.reading import read_answer
from v1lit.labels import IGNORE
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import RevisitConfig
from v1lit.revisit.registry import make_strategy
from v1lit.revisit.replay import ImageAgain, Replay
from v1lit.testing.models import inputs, mixed, noise

FAMILIES = list_backbones()
TEXT = (
    'I look. detect(query="it", objects=["<obj1><|region_1|>", "<obj2><|region_2|>"]) So <obj1> is at '
    '<|region_3|>, or detect(query="so", objects=["<obj3><|region_3|>"]). <answer>left</answer>'
)
BOXES = {
    "<|region_1|>": (20, 30, 100, 90),
    "<|region_2|>": (0, 0, 40, 40),
    "<|region_3|>": (84, 56, 168, 112),
}


@lru_cache
def processor(family: str = "qwen2_5_vl", max_tokens: int | None = None) -> Processor:
    return load_processor(BackboneConfig(family), revisit=Replay(max_tokens=max_tokens))


def example(images: int = 1) -> Example:
    return Example(
        id="one",
        images=(read_header(picture_file((168, 112))),) * images,
        messages=(Message("user", "<image>\n" * images + "Where?"), Message("assistant", TEXT)),
        regions={name: Region.from_box(box) for name, box in BOXES.items()},
    )


def written(encoded: Encoded, of: Processor) -> str:
    """The answer, where a run of pointers is written `{first:last:step}`."""
    start = int((encoded.labels != IGNORE).nonzero()[0])
    text, run = "", list[int]()
    for token in [*encoded.input_ids[start:].tolist(), of.stop_token_id]:
        if token >= of.pointer_start:
            run.append(token - of.pointer_start)
            continue
        if run:
            text += f"{{{run[0]}:{run[-1]}:{run[1] - run[0]}}}"
            assert run == list(range(run[0], run[-1] + 1, run[1] - run[0]))
            run = []
        text += of.decode([token])
    return text


@pytest.mark.parametrize(("cap", "put_in"), [(None, "{0:23:1}"), (24, "{0:23:1}"), (8, "{0:21:3}")])
def test_boxes_are_text_and_the_image_follows_every_call_once(cap: int | None, put_in: str) -> None:
    found = written(encode(example(), processor(max_tokens=cap), EncodingConfig()), processor())
    assert found.startswith(
        'I look. detect(query="it", objects=["<obj1><region>[0.12, 0.27, 0.60, 0.80]</region>", '
        f'"<obj2><region>[0.00, 0.00, 0.24, 0.36]</region>"]){put_in} So <obj1> is at '
        '<region>[0.50, 0.50, 1.00, 1.00]</region>, or detect(query="so", '
        f'objects=["<obj3><region>[0.50, 0.50, 1.00, 1.00]</region>"]){put_in}. <answer>left</answer>'
    )


def test_the_tokens_of_all_images_are_put_in_again() -> None:
    found = written(encode(example(images=2), processor(), EncodingConfig()), processor())
    assert found.count("{0:47:1}") == 2


def test_a_cap_below_one_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match="max_tokens"):
        make_strategy(RevisitConfig("replay", {"max_tokens": 0}))


@pytest.mark.parametrize("supervise", ["assistant", "all"])
def test_what_is_put_in_is_never_learned_and_all_else_is_as_before(supervise: str) -> None:
    of = processor()
    encoded = encode(example(), of, EncodingConfig(supervise=supervise))  # type: ignore[arg-type]
    put_in = encoded.input_ids >= of.pointer_start
    assert (encoded.labels[put_in] == IGNORE).all()
    begin = int((encoded.input_ids == of.image_token_id).nonzero()[-1]) + 30
    answer = slice(begin, len(encoded.labels) - 1)
    assert torch.equal(encoded.labels[answer] == encoded.input_ids[answer], ~put_in[answer])
    assert encoded.regions == ()
    assert encoded.unseen == ()


def test_no_call_is_cut_from_the_image_behind_it() -> None:
    of, whole = processor(), encode(example(), processor(), EncodingConfig())
    for limit in range(len(whole.input_ids) - 60, len(whole.input_ids)):
        cut = encode(example(), of, EncodingConfig(max_tokens=limit))
        assert int((cut.input_ids >= of.pointer_start).sum()) in (24, 48)
        assert torch.equal(cut.input_ids, whole.input_ids[: len(cut.input_ids)])


@pytest.mark.parametrize("cap", [None, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_measured_length_is_the_encoded_one(family: str, cap: int | None) -> None:
    of = processor(family, cap)
    for limit in (8192, 400):
        config = EncodingConfig(max_tokens=limit)
        encoded = encode(example(), of, config)
        length = measure(example(), of, config)
        assert length.tokens == len(encoded.input_ids)
        assert length.image_tokens == int((encoded.input_ids == of.image_token_id).sum())


@pytest.mark.parametrize("cap", [None, 7])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_forces_what_training_has_and_nothing_else(
    family: str, images: int, cap: int | None
) -> None:
    """Asked behind every token of an example, in rows padded on the left."""
    of = processor(family, cap)
    ids = encode(example(images), of, EncodingConfig()).input_ids
    (again,) = of.revisit.steering(of.pointer_start, of.image_token_id, of.encode_text)
    begin = int((ids == of.image_token_id).nonzero()[-1]) + 1
    width = of.pointer_start + int((ids == of.image_token_id).sum())
    for stop in range(begin, len(ids)):
        padded = torch.stack([torch.cat([ids.new_full((3,), of.pad_token_id), ids[:stop]])])
        scores = torch.randn(1, width)
        found = again(padded, scores.clone())
        if ids[stop] < of.pointer_start:
            assert torch.equal(found, scores)
        else:
            assert int(found.argmax()) == int(ids[stop])
            assert int(found.isfinite().sum()) == 1


class Script(LogitsProcessor):
    """The text that is generated first; pointers between its tokens are none of its own."""

    def __init__(self, ids: list[int], prompt: int, pointer_start: int) -> None:
        self.ids, self.prompt, self.pointer_start = ids, prompt, pointer_start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        said = (input_ids[:, self.prompt :] < self.pointer_start).sum(1).tolist()
        for row, count in enumerate(said):
            if count < len(self.ids):
                scores[row] = -torch.inf
                scores[row, self.ids[count]] = 0.0
        return scores


@lru_cache
def model(family: str, cap: int | None = None) -> PointAndCopyModel:
    torch.manual_seed(0)
    options = {} if cap is None else {"max_tokens": cap}
    made = PointAndCopyModel.build(BackboneConfig(family), revisit=RevisitConfig("replay", options))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim >= 2 and "norm" not in name:
                parameter.mul_(4.0)
    return made.eval()


def script(of: Processor) -> list[int]:
    """A call as it is written, token by token."""
    pieces = ['"<obj1><region>[0.12, 0.27]', "</region>", '"])', " So"]
    return [token for piece in pieces for token in of.encode_text(piece, special=False)]


def generate(family: str, batch: Batch, cap: int | None, new: int, **options: object) -> Tensor:
    of, whole = processor(family, cap), model(family, cap)
    prompt = batch.input_ids.shape[1]
    torch.manual_seed(0)
    out: Tensor = whole.generate(
        **inputs(batch),
        encode_text=of.encode_text,
        logits_processor=[Script(script(of), prompt, of.pointer_start)],
        max_new_tokens=new,
        min_new_tokens=new,
        eos_token_id=of.stop_token_id,
        pad_token_id=of.pad_token_id,
        **options,
    )
    return out


@pytest.mark.parametrize(
    "mode", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}], ids=lambda m: "+".join(m)
)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_gets_its_own_image_again(family: str, mode: dict[str, object]) -> None:
    of, cap = processor(family, 9), 9
    prompts = mixed(family)
    batch = collate(prompts, of.pad_token_id, side="left")
    start = batch.input_ids.shape[1]
    begin = len(script(of)) - len(of.encode_text(" So", special=False))
    rows = generate(family, batch, cap, begin + 14, **mode)[:, start:]
    copies = len(rows) // len(prompts)
    for row, ids in enumerate(rows):
        count = sum(map(len, prompts[row // copies].patch_maps))
        step = Replay(max_tokens=cap).step(count)
        expected = list(range(0, count, step))
        found = ids[begin : begin + len(expected)] - of.pointer_start
        assert found.tolist() == expected
        others = torch.cat([ids[:begin], ids[begin + len(expected) :]])
        assert (others < of.pointer_start).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_generated_as_each_row_alone(family: str) -> None:
    of, prompts = processor(family, 9), mixed(family)
    batch = collate(prompts, of.pad_token_id, side="left")
    together = generate(family, batch, 9, 60)[:, batch.input_ids.shape[1] :]
    for prompt, ids in zip(prompts, together, strict=True):
        alone = generate(family, collate([prompt], of.pad_token_id), 9, 60)
        assert torch.equal(alone[0, len(prompt.input_ids) :], ids)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_states_of_a_generated_trace_are_those_of_the_teacher_forced_pass(family: str) -> None:
    of, (prompt,) = processor(family), mixed(family, (1,))
    batch = collate([prompt], of.pad_token_id)
    out = generate(family, batch, None, 70, return_dict_in_generate=True, output_logits=True)
    ids = out.sequences  # type: ignore[attr-defined]
    assert int((ids >= of.pointer_start).sum()) == len(prompt.patch_maps[0])
    forced = replace(prompt, input_ids=ids[0], labels=ids[0])
    whole = model(family)(**inputs(collate([forced], of.pad_token_id))).logits[0]
    whole[:, of.image_token_id] = -torch.inf  # which is never generated
    start = len(prompt.input_ids)
    stepwise = torch.cat(out.logits)  # type: ignore[attr-defined]
    torch.testing.assert_close(stepwise, whole[start - 1 : -1].float(), atol=2e-4, rtol=1e-4)


def test_a_prediction_points_at_nothing_and_its_text_is_what_the_model_said() -> None:
    of = processor()
    predictor = Predictor(model("qwen2_5_vl"), of)
    images = [noise((112, 84))]
    prompt = predictor.batch([(images, "Where?")], max_new_tokens=1)
    assert prompt[0].pointers == ()
    ids = [*script(of)[:-1], of.pointer_start, of.pointer_start + 1, *of.encode_text(" So")]
    read = read_answer(ids, None, (), 0, of, predictor.model.strategy)
    assert read.text.endswith('</region>"]) So')
    assert read.pointers == ()


def test_without_the_ids_of_its_marks_generation_is_refused() -> None:
    batch = collate(mixed("qwen2_5_vl", (1,)), 0)
    with pytest.raises(ValueError, match="encode_text"):
        model("qwen2_5_vl").generate(**inputs(batch), max_new_tokens=2)


def test_nothing_is_put_in_where_there_is_no_image() -> None:
    of = processor()
    ids = torch.tensor([script(of)[:-1]])
    again = ImageAgain(Replay(), ids[0, -4:].tolist(), of.image_token_id, of.pointer_start)
    scores = torch.randn(1, of.pointer_start)
    assert torch.equal(again(ids, scores.clone()), scores)
