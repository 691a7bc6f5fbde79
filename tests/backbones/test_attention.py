"""The attention option: what is chosen and why, and packed rows in the stock decoder of every family."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from v1lit.backbones import BackboneConfig, attention, attention_kernels, get_backbone, list_backbones
from v1lit.backbones.attention import (
    choose_attention,
    packed_decoder_arguments,
    set_attention,
    stock_attention,
    use_segments,
)
from v1lit.backbones.attention_kernels import AUTO, KERNELS, Kernel
from v1lit.backbones.load import load_backbone
from v1lit.backbones.segments import Segments

pytestmark = pytest.mark.dependencies

LENGTHS = (7, 1, 5, 5, 12)
WIDTH = 64


# ---- the choice --------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """As if on a GPU where all is installed and runs, but for what the test puts into this dict."""
    broken: dict[str, str] = {}
    names = {kernel.attend: name for name, kernel in KERNELS.items()}
    monkeypatch.setattr(Kernel, "missing", lambda kernel: None)
    monkeypatch.setattr(
        attention_kernels, "_trial", lambda attend, device, dtype, causal=True: broken.get(names[attend])
    )
    return broken


def test_on_a_cpu_sdpa_is_chosen_and_the_line_says_why() -> None:
    choice = choose_attention("auto", "cpu", torch.bfloat16)
    assert choice.name == "sdpa"
    assert choice.line == (
        "attention: sdpa (flash_attention_2: needs a CUDA GPU; varlen: needs a CUDA GPU; "
        "xformers: needs a CUDA GPU)"
    )


def test_on_a_gpu_the_first_that_runs_is_chosen(gpu: dict[str, str]) -> None:
    reasons: list[str] = []
    for name in AUTO:
        choice = choose_attention("auto", "cuda", torch.bfloat16)
        assert choice.name == name
        assert choice.line == f"attention: {name}" + (f" ({'; '.join(reasons)})" if reasons else "")
        gpu[name] = "fails: RuntimeError: no such operator"
        reasons.append(f"{name}: {gpu[name]}")


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_in_full_precision_only_sdpa_remains() -> None:
    choice = choose_attention("auto", "cuda", torch.float32)
    assert choice.name == "sdpa"
    assert choice.line.count("needs bfloat16 or float16, not float32") == 3


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", KERNELS)
def test_what_is_given_is_taken(name: str) -> None:
    assert choose_attention(name, "cuda", torch.float16) == attention.Choice(
        name, f"attention: {name} (as given)"
    )


@pytest.mark.parametrize("name", ["flash_attention_2", "varlen", "xformers", "flex_attention"])
def test_what_is_given_and_does_not_run_is_an_error_that_says_what_runs(name: str) -> None:
    with pytest.raises(ValueError, match=f"attention={name}: {name} needs a CUDA GPU") as error:
        choose_attention(name, "cpu", torch.bfloat16)
    assert "on this cpu device in bfloat16 these run: sdpa, eager, or auto" in str(error.value)


def test_a_name_that_does_not_exist_is_refused_early_and_late() -> None:
    for make in (
        lambda: BackboneConfig(attention="flash"),
        lambda: choose_attention("flash", "cpu", torch.float32),
    ):
        with pytest.raises(ValueError, match=r"attention is 'flash'.*allowed: auto, sdpa, flash_att"):
            make()


@pytest.mark.parametrize(("name", "package"), [("flash_attention_2", "flash_attn"), ("xformers", "xformers")])
def test_a_package_that_is_not_installed_is_told_from_one_that_does_not_load(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    kernel, device = KERNELS[name], torch.device("cuda")
    for module in (package, f"{package}.ops"):
        monkeypatch.setitem(sys.modules, module, None)
    reason = kernel.reason(device, torch.bfloat16)
    assert reason == f"is not installed (pip install 'v1lit[{package.replace('_', '-')}]')"

    def broken(module: str) -> Any:
        raise ImportError("undefined symbol: _ZN3c10\nand more")

    monkeypatch.setattr(attention_kernels, "import_module", broken)
    reason = kernel.reason(device, torch.bfloat16)
    assert reason == "fails: ImportError: undefined symbol: _ZN3c10"


def test_operators_that_do_not_run_are_found_by_trying() -> None:
    def absent(*args: Any) -> Tensor:
        raise NotImplementedError("No operator found\nwith inputs")

    def forwards_only(query: Tensor, *args: Any) -> Tensor:
        return query.detach()

    for attend, reason in [
        (absent, "fails: NotImplementedError: No operator found"),
        (forwards_only, "fails: RuntimeError: element 0 of tensors does not require grad"),
        (attention_kernels.sdpa, None),
    ]:
        with torch.inference_mode():
            found = attention_kernels._trial(attend, torch.device("cpu"), torch.bfloat16)
        assert found == reason or (reason is not None and str(found).startswith(reason))


def test_transformers_gets_the_implementation_that_goes_with_the_option(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stocks = {name: stock_attention(name) for name in ("auto", "sdpa", "varlen", "xformers", "eager")}
    assert stocks == {
        "auto": "sdpa",
        "sdpa": "sdpa",
        "varlen": "sdpa",
        "xformers": "sdpa",
        "eager": "eager",
    }
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ValueError, match="flash_attention_2 is not installed") as error:
        load_backbone(BackboneConfig(attention="flash_attention_2"))
    assert "model.backbone.attention" in str(error.value)
    monkeypatch.setattr(Kernel, "missing", lambda kernel: None)
    with pytest.raises(ValueError, match="flash_attention_2 needs a CUDA GPU"):
        stock_attention("flash_attention_2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert stock_attention("flash_attention_2") == "flash_attention_2"


# ---- in the stock decoders ---------------------------------------------------------------------------------


def build(name: str, attention: str = "sdpa", packed: bool = True) -> PreTrainedModel:
    """A tiny model with large weights, so that attention is far from uniform."""
    torch.manual_seed(0)
    model = load_backbone(BackboneConfig(name, attention=attention))
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "norm" not in path:
                parameter.mul_(4.0)
    if packed:
        use_segments(model.config.get_text_config())
    return model.eval()


def embeddings(seed: int = 1) -> Tensor:
    return torch.randn(1, sum(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(seed))


def positions() -> Tensor:
    return torch.cat([torch.arange(length) for length in LENGTHS])[None]


def packed(model: PreTrainedModel, inputs: Tensor, kernel: str = "sdpa") -> Tensor:
    arguments = packed_decoder_arguments(Segments(LENGTHS, kernel), inputs.device, inputs.dtype)
    decoded = model.get_decoder()(inputs_embeds=inputs, position_ids=positions(), **arguments)
    return decoded.last_hidden_state


def alone(model: PreTrainedModel, inputs: Tensor) -> Tensor:
    """Each example in a call of its own, by the stock implementation."""
    parts = inputs.split(LENGTHS, dim=1)
    outputs = [model.get_decoder()(inputs_embeds=part, use_cache=False).last_hidden_state for part in parts]
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("stock", ["sdpa", "eager"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", list_backbones())
def test_a_packed_row_gives_what_each_example_gives_alone(name: str, kernel: str, stock: str) -> None:
    model, inputs = build(name, stock), embeddings()
    output = packed(model, inputs, kernel)
    torch.testing.assert_close(output, alone(model, inputs), rtol=1e-5, atol=1e-5)
    # The same row as one example is something else, so the segments matter.
    ones = torch.ones(1, sum(LENGTHS))
    whole = model.get_decoder()(inputs_embeds=inputs, position_ids=positions(), attention_mask=ones)
    assert (output - whole.last_hidden_state).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", list_backbones())
def test_gradients_of_a_packed_row_are_those_of_the_examples(name: str, checkpointing: bool) -> None:
    model = build(name).train()
    weight = torch.randn(1, sum(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(2))
    gradients = []
    for run in (alone, packed):
        if run is packed and checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        inputs = embeddings().requires_grad_()
        (run(model, inputs) * weight).sum().backward()
        found = {path: p.grad for path, p in model.named_parameters() if p.grad is not None}
        gradients.append({"inputs": inputs.grad, **found})
    assert len(gradients[0]) > 10
    assert gradients[0].keys() == gradients[1].keys()
    for path, gradient in gradients[0].items():
        error = (gradients[1][path] - gradient).norm() / gradient.norm()
        assert error < 1e-5, path


@pytest.mark.parametrize("name", list_backbones())
def test_changing_an_example_changes_no_other_by_a_bit(name: str) -> None:
    model, inputs = build(name), embeddings()
    changed = inputs.clone()
    changed[:, 8:13] = embeddings(3)[:, 8:13]
    before, after = packed(model, inputs), packed(model, changed)
    others = [*range(8), *range(13, sum(LENGTHS))]
    assert torch.equal(before[:, others], after[:, others])
    assert (before[:, 8:13] != after[:, 8:13]).any()


@pytest.mark.parametrize("name", list_backbones())
def test_segments_reach_every_text_layer_and_the_mask_is_the_poison(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = build(name), []
    ours = AttentionInterface()["v1lit_sdpa"]

    def watched(module: nn.Module, query: Tensor, *args: Any, **options: Any) -> Any:
        calls.append((module, options.get("segments"), args[2]))
        return ours(module, query, *args, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, "v1lit_sdpa", watched)
    packed(model, embeddings())
    layers = [layer.self_attn for layer in model.get_decoder().layers if hasattr(layer, "self_attn")]
    assert [call[0] for call in calls] == layers
    for _, segments, mask in calls:
        assert segments == Segments(LENGTHS)
        # Never anything of the size [tokens, tokens].
        assert mask.shape == (1, 1, 1, 1)
        assert mask.isnan().all()


@pytest.mark.parametrize("stock", ["sdpa", "eager"])
@pytest.mark.parametrize("name", list_backbones())
def test_a_layer_that_drops_the_segments_shows_at_once(name: str, stock: str) -> None:
    model = build(name, stock)
    layer = model.get_decoder().layers[-1].self_attn
    forward = layer.forward

    def forgetful(*args: Any, segments: Segments, **options: Any) -> Any:
        return forward(*args, **options)

    layer.forward = forgetful
    assert packed(model, embeddings()).isnan().all()


@pytest.mark.parametrize("stock", ["sdpa", "eager"])
@pytest.mark.parametrize("name", list_backbones())
def test_without_segments_nothing_has_changed(name: str, stock: str) -> None:
    ours, theirs = build(name, stock), build(name, stock, packed=False)
    assert ours.config.get_text_config()._attn_implementation == f"v1lit_{stock}"
    ids = torch.randint(5, 200, (3, 9), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[2, :1] = 0
    ids[mask == 0] = 0
    for given in (mask, mask.flip(-1), None):
        hidden = [
            model.get_decoder()(
                inputs_embeds=model.get_input_embeddings()(ids), attention_mask=given
            ).last_hidden_state
            for model in (ours, theirs)
        ]
        assert torch.equal(*hidden)
    for options in ({}, {"num_beams": 3}):
        texts = [
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=6,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
                **options,
            )
            for model in (ours, theirs)
        ]
        assert torch.equal(texts[0].sequences, texts[1].sequences)
        assert all(torch.equal(*logits) for logits in zip(texts[0].logits, texts[1].logits, strict=True))


@pytest.mark.parametrize("name", list_backbones())
def test_the_vision_tower_keeps_the_stock_implementation(name: str) -> None:
    model, plain = build(name), build(name, packed=False)
    for config in (model.config, getattr(model.config, "vision_config", model.config)):
        assert config._attn_implementation == "sdpa"
    assert type(get_vision(model)) is type(get_vision(plain))
    pixels = get_backbone(name).blank_image(model)
    pixels["pixel_values"] = torch.randn_like(pixels["pixel_values"])
    features = [get_backbone(name).encode_images(m, **pixels) for m in (model, plain)]
    assert torch.equal(*features)


def get_vision(model: PreTrainedModel) -> nn.Module:
    return model.get_submodule(get_backbone(model.config.model_type).parts["vision"][0])


@pytest.mark.parametrize("name", list_backbones())
def test_a_model_can_be_switched_after_loading(name: str) -> None:
    model, inputs = build(name, "eager"), embeddings()
    before = alone(model, inputs)
    for chosen, stock in [("varlen", "sdpa"), ("eager", "eager"), ("sdpa", "sdpa")]:
        set_attention(model, chosen)
        assert model.config._attn_implementation == stock
        assert getattr(model.config, "vision_config", model.config)._attn_implementation == stock
        assert model.config.get_text_config()._attn_implementation == f"v1lit_{stock}"
        torch.testing.assert_close(alone(model, inputs), before, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(packed(model, inputs), before, rtol=1e-5, atol=1e-5)
    use_segments(model.config.get_text_config())
    assert model.config.get_text_config()._attn_implementation == "v1lit_sdpa"


def test_stock_flash_attention_is_asked_for_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = build("llava"), []
    text = model.config.get_text_config()

    def flash(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        asked.append((module.config._attn_implementation, mask))
        return AttentionInterface()["sdpa"](module, query, key, value, None, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", flash)
    text._attn_implementation = "flash_attention_2"
    use_segments(text)
    mask = torch.ones(2, 6).long()
    mask[0, 0] = 0
    model.get_decoder()(inputs_embeds=torch.randn(2, 6, WIDTH), attention_mask=mask)
    assert [name for name, _ in asked] == ["flash_attention_2"] * text.num_hidden_layers
    # As transformers makes it for flash attention: one row per example.
    assert all(torch.equal(given, mask.bool()) for _, given in asked)
    assert text._attn_implementation == "v1lit_flash_attention_2"


def test_under_autocast_all_heads_come_in_one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = build("qwen2_5_vl"), []

    def watched(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        seen.extend([query.dtype, key.dtype, value.dtype])
        return attention_kernels.sdpa(query, key, value, *rest)

    monkeypatch.setitem(KERNELS, "sdpa", Kernel(watched, anywhere=True))
    with torch.autocast("cpu", torch.bfloat16):
        output = packed(model, embeddings())
    assert set(seen) == {torch.bfloat16}
    assert (output - packed(model, embeddings())).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 0.1}, "attention_dropout"),
        ({"softcap": 30.0}, "softcap"),
    ],
)
def test_what_no_kernel_computes_is_refused_not_left_out(options: dict[str, Any], message: str) -> None:
    heads = torch.randn(1, 2, sum(LENGTHS), 8)
    ours = AttentionInterface()["v1lit_sdpa"]
    with pytest.raises(ValueError, match=message):
        ours(nn.Module(), heads, heads, heads, None, segments=Segments(LENGTHS), **options)
    ours(nn.Module(), heads, heads, heads, None, segments=Segments(LENGTHS), sliding_window=5, dropout=0.0)
    with pytest.raises(ValueError, match="packed examples are one row, not 2"):
        ours(nn.Module(), *[heads.repeat(2, 1, 1, 1)] * 3, None, segments=Segments(LENGTHS))


def test_an_implementation_without_a_packed_twin_is_refused() -> None:
    text = build("llava", packed=False).config.get_text_config()
    text._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="sdpa, flash_attention_2, eager in the config, not flex_attention"):
        use_segments(text)


@pytest.mark.slow
def test_a_compiled_layer_is_not_compiled_anew_for_other_segments() -> None:
    from torch._dynamo.testing import CompileCounter

    model, plain, counter = build("qwen2_5_vl"), build("qwen2_5_vl"), CompileCounter()
    model.get_decoder().layers[0].compile(backend=counter, dynamic=True)
    frames = []
    with torch.no_grad():
        for lengths in [(7, 3, 5), (20,), (6, 9, 4, 1), (12, 2), (3, 3, 3, 3), (18,)]:
            inputs = torch.randn(1, sum(lengths), WIDTH)
            rows = torch.cat([torch.arange(length) for length in lengths])[None]
            arguments = packed_decoder_arguments(Segments(lengths), inputs.device, inputs.dtype)
            outputs = [
                m.get_decoder()(inputs_embeds=inputs, position_ids=rows, **arguments).last_hidden_state
                for m in (model, plain)
            ]
            torch.testing.assert_close(*outputs)
            frames.append(counter.frame_count)
    assert frames[0] > 0
    # A row of one example is laid out in its own way; after that there is nothing new.
    assert frames[-1] == frames[1]
