"""Options of adapters, the layers that they hit, and weights in 4 bits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapters import adapted

from v1lit.backbones.adapters.config import KINDS, AdapterConfig
from v1lit.backbones.adapters.folder import adapter_folder
from v1lit.backbones.adapters.inject import merge
from v1lit.backbones.adapters.layers import counted, linear_layers, whole_modules
from v1lit.backbones.adapters.library import check_libraries
from v1lit.backbones.adapters.quantized import BYTES, numbers_in
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.registry import list_backbones
from v1lit.errors import OptionError
from v1lit.pointer.adapted import kept_names
from v1lit.pointer.model import PointAndCopyModel
from v1lit.testing.models import build, inputs, training_batch
from v1lit.training.flops import ModelFlops
from v1lit.training.module import V1Module

FAMILY = "qwen2_5_vl"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "Lora"}, "kind is 'Lora'; did you mean 'lora'? allowed: lora, dora, qlora, null"),
        ({"rank": 0}, "adapter.rank is 0; give 1 or more"),
        ({"alpha": 0.0}, "adapter.alpha is 0.0; it must be positive"),
        ({"dropout": 1.0}, "adapter.dropout is 1.0; it is a share"),
        ({"parts": ["langauge"]}, "no 'langauge'; did you mean 'language'?"),
        ({"parts": []}, "model.adapter.parts is []; name at least one"),
        ({"modules": []}, "model.adapter.modules is []; name at least one"),
        ({"train": ["head"]}, "no 'head'; allowed: embeddings, projector, vision"),
        (
            {"parts": ["language", "vision"], "train": ["vision"]},
            "vision has adapters by model.adapter.parts; a part has those or learns itself",
        ),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as refused:
        AdapterConfig(**{"kind": "lora", **options})
    assert words in str(refused.value)


def test_there_are_none_unless_a_kind_is_named() -> None:
    assert not AdapterConfig()
    assert all(AdapterConfig(kind) for kind in KINDS)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", list_backbones())
def test_the_layers_of_a_part_are_its_own_and_without_the_head(family: str) -> None:
    model = build(family)
    inner, head = model.backbone, model.get_output_embeddings()
    found = {part: linear_layers(inner, model.family, part) for part in model.family.parts}
    assert {part for part in found if not found[part]} <= ({"projector"} if family == "gemma3" else set())
    every = [path for paths in found.values() for path in paths]
    assert len(every) == len(set(every))
    assert all(inner.get_submodule(path) is not head for path in every)
    for part, paths in found.items():
        assert all(path.startswith(model.family.parts[part]) for path in paths)


def test_a_pattern_that_matches_nothing_is_refused_with_what_there_is() -> None:
    for modules in (["*.q_prj"], ["*.q_proj", "q_proj"]):
        with pytest.raises(OptionError) as refused:
            adapted(FAMILY, AdapterConfig("lora", modules=modules))
        assert f"{modules[-1]!r} matches no linear layer; there are: language *.self_attn.q_proj x 2" in str(
            refused.value
        )
    with pytest.raises(OptionError, match="none of them matches a layer of vision; there are: vision "):
        adapted(FAMILY, AdapterConfig("lora", parts=["language", "vision"], modules=["*.q_proj"]))


def test_patterns_choose_and_the_lines_at_the_start_say_what_was_hit() -> None:
    adapter = AdapterConfig("lora", rank=2, modules=["*.layers.1.*.q_proj", "*.down_proj"])
    model = adapted(FAMILY, adapter, learned=False)
    assert model.injected is not None
    hit, learned = model.injected.lines(adapter, model)
    assert hit == (
        "model.adapter: lora of rank 2 on 3 layers: "
        "language *.mlp.down_proj x 2, language *.self_attn.q_proj x 1"
    )
    numbers = sum(own.numel() for own in model.parameters())
    of_adapters = sum(own.numel() for name, own in model.named_parameters() if "lora" in name)
    learns = of_adapters + sum(own.numel() for own in model.pointer_head.parameters())
    assert learned.startswith(
        f"model.adapter: {learns:,} of {numbers:,} numbers learn ({learns / numbers:.2%})"
    )
    assert learned.endswith(f"adapters have {of_adapters:,}")


def test_layers_are_counted_by_their_names() -> None:
    paths = ["a.layers.0.up", "a.layers.11.up", "a.layers.0.mlp.down", "a.merger.mlp.0"]
    assert counted("p", paths) == ["p *.up x 2", "p *.mlp.down x 1", "p a.merger.mlp.0 x 1"]
    assert whole_modules(["a.b.weight", "a.b.bias", "a.b.c.weight", "d.weight"]) == ["a.b", "d"]


@pytest.mark.parametrize(
    ("kind", "library", "extra"),
    [("lora", "peft", "v1lit[adapters]"), ("qlora", "bitsandbytes", "v1lit[adapters,adamw8bit]")],
)
def test_a_library_that_is_missing_is_named_with_what_installs_it(
    kind: Any, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(OptionError) as refused:
        adapted(FAMILY, AdapterConfig(kind))
    assert str(refused.value) == (
        f"model.adapter.kind is {kind!r}; it needs {library}, which is not installed\n"
        f"install it with: pip install '{extra}'"
    )
    check_libraries(AdapterConfig())


# ------------------------------------------------------------------ weights in 4 bits


@pytest.fixture
def qlora() -> AdapterConfig:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    return AdapterConfig("qlora", rank=4, parts=["language", "vision"])


def test_weights_in_four_bits_take_an_eighth_of_float32_and_stand_for_as_many(qlora: AdapterConfig) -> None:
    model = adapted(FAMILY, qlora, learned=False)
    packed = [own for own in model.backbone.parameters() if own.dtype == torch.uint8]
    assert model.injected is not None
    assert len(packed) == sum(map(len, model.injected.layers.values()))
    assert all(numbers_in(own) == 2 * own.numel() for own in packed)
    assert pytest.approx(0.516, abs=1e-3) == BYTES
    other = adapted(FAMILY, AdapterConfig("lora", rank=4, parts=["language", "vision"]), learned=False)
    counts = [ModelFlops(one).language.numbers for one in (model, other)]
    assert counts[0] == counts[1]


def test_a_model_in_four_bits_learns_its_adapters_alone(qlora: AdapterConfig, tmp_path: Path) -> None:
    model = adapted(FAMILY, qlora, dtype="bfloat16").train()
    batch = training_batch(FAMILY)
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs(batch), labels=batch.labels).loss.backward()
    learned = {name for name, own in model.named_parameters() if own.grad is not None and own.grad.any()}
    assert learned == set(kept_names(model))
    model.eval().save_pretrained(tmp_path)
    found = adapter_folder(tmp_path)
    assert found is not None
    opened = PointAndCopyModel.from_adapter(found, alike=False)
    for name, own in model.named_parameters():
        assert torch.equal(own, opened.get_parameter(name)), name
    module = V1Module(BackboneConfig(FAMILY), adapter=qlora)
    module.configure_model()
    assert all(name.removeprefix("model.") in learned for name in module.state_dict())
    module.to(torch.bfloat16)
    assert {own.dtype for own in module.model.parameters()} == {torch.bfloat16, torch.uint8}


def test_merging_into_four_bits_gives_what_they_stood_for(qlora: AdapterConfig) -> None:
    model, plain = adapted(FAMILY, qlora), build(FAMILY)
    with torch.no_grad():
        before = model(**inputs(training_batch(FAMILY))).logits.nan_to_num(neginf=0.0)
        merge(model.backbone)
        after = model(**inputs(training_batch(FAMILY))).logits.nan_to_num(neginf=0.0)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    assert {type(module) for module in model.modules()} == {type(module) for module in plain.modules()}
    assert list(model.state_dict()) == list(plain.state_dict())
