"""A static cache and compiled steps change no token, and what cannot have them is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters
from transformers import CompileConfig

from v1lit.backbones import get_backbone, list_backbones
from v1lit.cli import generate as command
from v1lit.data.encode.batch import collate
from v1lit.inference import decoding
from v1lit.inference.decoding import Decoding
from v1lit.inference.predictor import Predictor
from v1lit.testing.models import generate, mixed, prefers_pointing, processor

pytestmark = pytest.mark.dependencies
FAMILIES = [name for name in list_backbones() if not get_backbone(name).whole_images]
ASKED = [([Image.new("RGB", (56, 84), "red")], "Where?"), ([], "Say something long, please.")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{"do_sample": False}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_a_static_cache_changes_no_token(family: str, options: dict[str, Any]) -> None:
    model = prefers_pointing(family)
    batch = collate(mixed(family, (1, 0)), processor(family).pad_token_id, side="left")
    static = generate(model, batch, **Decoding(static_cache=True).options(model), **options)
    assert torch.equal(static, generate(model, batch, **options))
    assert (static >= model.config.pointer_start).any()


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name == "qwen2_5_vl" else pytest.mark.slow) for name in FAMILIES],
)
def test_compiled_steps_are_one_graph_that_changes_no_token(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dynamo's graph is run as it is: what inductor makes of it is torch's own matter."""

    def traced(device: torch.device) -> CompileConfig:
        config = CompileConfig(mode=None, fullgraph=True, backend="eager")
        config._compile_all_devices = True  # type: ignore[assignment]
        return config

    monkeypatch.setattr(decoding, "compile_config", traced)
    torch._dynamo.reset()
    counters.clear()
    model = prefers_pointing(family)
    batch = collate(mixed(family), processor(family).pad_token_id, side="left")
    plain = generate(model, batch)
    for _ in range(2):
        compiled = generate(model, batch, **Decoding(compiled=True).options(model))
        assert torch.equal(compiled, plain)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert not counters["recompiles"]
    torch._dynamo.reset()


def test_a_predictor_answers_the_same_and_its_conversations_go_on() -> None:
    model, of = prefers_pointing("qwen2_5_vl"), processor("qwen2_5_vl")
    plain, static = Predictor(model, of), Predictor(model, of, Decoding(static_cache=True))
    assert static.batch(ASKED, max_new_tokens=8) == plain.batch(ASKED, max_new_tokens=8)
    talks = [one.conversation(ASKED[0][0]) for one in (plain, static)]
    options: list[dict[str, Any]] = [{}, {"cache_implementation": "static"}]
    for question in ("Where?", "And now?"):
        first, second = (
            talk.ask(question, max_new_tokens=6, **more) for talk, more in zip(talks, options, strict=True)
        )
        assert first == second


def test_compiled_is_for_every_device_and_one_graph() -> None:
    on_cpu = Decoding(compiled=True).options(prefers_pointing("llava"))["compile_config"]
    assert (on_cpu.fullgraph, on_cpu.mode, on_cpu._compile_all_devices) == (True, "default", True)
    assert decoding.compile_config(torch.device("cuda")).mode == "reduce-overhead"


def test_what_cannot_have_a_static_cache_is_refused_at_once() -> None:
    family = next(name for name in list_backbones() if get_backbone(name).whole_images)
    with pytest.raises(ValueError, match=r"static_cache is True; images of \w+ see themselves whole"):
        Predictor(prefers_pointing(family), processor(family), Decoding(static_cache=True))
    model = prefers_pointing("llava")
    model.hf_device_map = {"a": 0, "b": "cpu"}
    with pytest.raises(ValueError, match="compiled is True; weights on several devices"):
        Decoding(compiled=True).options(model)
    assert Decoding(static_cache=True).options(model) == {"cache_implementation": "static"}


def test_the_command_line_has_both_options(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("v1lit.inference.loading.load", lambda *_, **options: given.update(options))
    command._load(command._parser().read(["m", "a.png", "Where?", "--static-cache", "--compiled"]))
    assert (given["static_cache"], given["compiled"]) == (True, True)
