"""A model made of parts does what its parts do: timm's tower, the language model, and a map of patches."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import pytest
import torch
from helpers.timm_towers import NAFLEX, PADDED, TOWERS, VIT
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from v1lit.backbones import register_backbone, registry
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.efficiency import enable_checkpointing
from v1lit.backbones.load import load_backbone
from v1lit.backbones.processor import load_processor
from v1lit.backbones.registry import get_backbone
from v1lit.backbones.timm_lm import TimmLM
from v1lit.backbones.timm_tower import tower_facts
from v1lit.data.encode.batch import collate
from v1lit.parallel.units import Units
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import RevisitConfig
from v1lit.revisit.registry import make_strategy
from v1lit.testing import assert_parity, assert_patch_map, check_backbone
from v1lit.testing.models import inputs, mixed, noise, processor, training_batch

pytestmark = pytest.mark.dependencies


def tiny(**sizes: Any) -> BackboneConfig:
    return BackboneConfig("timm_lm", tiny=sizes)


def model_of(name: str, **sizes: Any) -> Any:
    torch.manual_seed(0)
    return load_backbone(tiny(**TOWERS[name], **sizes)).eval()


# ---------------------------------------------------------------- which patch sees which pixels


@pytest.mark.parametrize("tower", TOWERS)
def test_a_painted_rectangle_changes_exactly_its_tokens(tower: str) -> None:
    for size in ((300, 181), (150, 333)):
        assert assert_patch_map("timm_lm", size, TOWERS[tower]) == 6


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        (TOWERS["convnext"], {"size": {"height": 200, "width": 331}}),  # floors
        (TOWERS["resnet"], {"size": {"height": 200, "width": 331}}),  # ceils
        (PADDED, {"size": {"height": 170, "width": 333}}),  # pads
        (TOWERS["siglip2"], {"fit": "pad"}),
        ({**TOWERS["convnext"], "projector": "pixel_shuffle"}, {"size": {"height": 200, "width": 263}}),
        ({**TOWERS["siglip2"], "projector": "average_pool", "projector_scale": 3}, {}),
        ({**TOWERS["siglip2"], "projector": "local_resampler"}, {}),
        ({**TOWERS["dinov3"], "projector": "linear", "feature_layers": [0, 1]}, {}),
        ({**TOWERS["naflex_prefix"], "projector": "pixel_shuffle"}, {"max_tokens": 100}),
    ],
    ids=lambda value: str(value.get("projector") or value.get("tower", "")) if "tower" in value else None,
)
def test_sizes_projectors_and_layers_keep_it_exact(sizes: dict[str, Any], options: dict[str, Any]) -> None:
    assert assert_patch_map("timm_lm", (400, 281), sizes, **options) == 6


def test_an_image_keeps_its_aspect_as_timm_resizes_it() -> None:
    from timm.data.naflex_transforms import get_image_size_for_seq

    from v1lit.backbones.timm_sizes import kept_grid

    for size in ((640, 480), (31, 900), (5000, 300), (48, 48), (333, 170)):
        for most in (36, 256, 1024):
            _, (height, width) = get_image_size_for_seq(size[::-1], 16, most)
            assert kept_grid(size, 16, most) == (height // 16, width // 16)
            rows, columns = kept_grid(size, 16, most, 2)
            assert rows % 2 == columns % 2 == 0
            assert rows * columns <= most


# ---------------------------------------------------------------- the parts, unchanged


def own_features(model: Any, pixels: Tensor) -> Tensor:
    """`[patches, channels]` of one image, from the tower's own forward pass."""
    tower = model.vision_tower
    states = tower.forward_features(pixels)
    if states.ndim == 4 and model.config.tower.startswith("swin"):
        return states.flatten(0, 2)
    if states.ndim == 4:
        return states.permute(0, 2, 3, 1).flatten(0, 2)
    return states[:, tower.num_prefix_tokens :].flatten(0, 1)


@pytest.mark.parametrize("tower", [name for name in TOWERS if not name.startswith("naflex")])
def test_features_are_those_of_timms_own_forward_pass(tower: str) -> None:
    model = model_of(tower)
    tensors, _ = load_processor(tiny(**TOWERS[tower])).images([noise((130, 90))])
    with torch.no_grad():
        ours = model.image_features(**tensors)
        theirs = model.projector(own_features(model, tensors["pixel_values"]), [1])
    assert_parity("features", ours, theirs)


@pytest.mark.parametrize("tower", ["naflex", "naflex_prefix"])
def test_images_of_any_aspect_are_as_timm_sees_each_of_them_whole(tower: str) -> None:
    model = model_of(tower)
    of = load_processor(BackboneConfig("timm_lm", tiny=TOWERS[tower], image={"max_tokens": 40}))
    pictures = [noise((200, 70)), noise((64, 64), 1), noise((40, 170), 2)]
    tensors, _ = of.images(pictures)
    grids, at, theirs = tensors["image_grid_hw"].tolist(), 0, []
    assert len({tuple(grid) for grid in grids}) == 3
    with torch.no_grad():
        ours = model.image_features(**tensors)
        for rows, columns in grids:
            flat = tensors["pixel_values"][at : at + rows * columns]
            image = flat.reshape(rows, columns, 16, 16, 3).permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2)
            kept = model.vision_tower.forward_intermediates(
                image[None], indices=[-1], norm=True, intermediates_only=True
            )[0]
            theirs.append(model.projector(kept[0].flatten(1).T, [rows * columns]))
            at += rows * columns
    assert_parity("features", ours, torch.cat(theirs))


def test_logits_and_generations_are_those_of_the_language_model_on_the_same_embeddings() -> None:
    model = model_of("dinov3", language="llama")
    of = load_processor(tiny(**TOWERS["dinov3"], language="llama"))
    picture, question = noise((100, 80)), of.encode_text("Where?")
    tensors, (patch_map,) = of.images([picture])
    ids = torch.tensor([[*question, *[of.image_token_id] * len(patch_map), *question]])
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
        embeds[0, len(question) : -len(question)] = model.image_features(**tensors)
        assert torch.equal(
            model(input_ids=ids, **tensors).logits, model.language_model(inputs_embeds=embeds).logits
        )
        limits: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
        ours = model.generate(input_ids=ids, **tensors, **limits)[0, ids.shape[1] :]
        theirs = model.language_model.generate(inputs_embeds=embeds, **limits)[0]
    assert ours.tolist() == theirs.tolist()
    with pytest.raises(ValueError, match=f"0 placeholders for {len(patch_map)} image tokens"):
        model(input_ids=torch.tensor([question]), **tensors)


def test_a_model_whose_head_is_off_generates_what_its_backbone_does() -> None:
    torch.manual_seed(0)
    model = PointAndCopyModel.build(tiny(), revisit=RevisitConfig("text_only")).eval()
    of = processor("timm_lm")
    batch = collate(mixed("timm_lm", (1, 0)), of.pad_token_id, side="left")
    limits: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    ours = model.generate(**inputs(batch), **limits)
    theirs = model.backbone.generate(**inputs(batch), **limits, suppress_tokens=[of.image_token_id])
    assert torch.equal(ours, theirs)


# ---------------------------------------------------------------- what is promised of every family


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    processor.cache_clear()


def registered(name: str, **sizes: Any) -> str:
    """A family of this tower alone."""
    cls = type(name, (TimmLM,), {"tiny_sizes": {**TimmLM.tiny_sizes, **sizes}})
    register_backbone(name)(cls)
    return name


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["dinov3", "convnext", "swin", "resnet", "naflex_prefix"])
def test_every_tower_does_what_is_promised_of_families(tower: str) -> None:
    name = registered(f"timm_{tower}", **TOWERS[tower])
    # Where images have their own aspect, torch would count the padding of the tower's batch too.
    work = [] if tower.startswith("naflex") else ["work"]
    check_backbone(name, "images", "blank_image", "gradients", *work, "checkpoint", "packing")


def test_the_work_of_an_image_that_keeps_its_aspect_is_what_torch_counts() -> None:
    model = model_of("naflex_prefix", projector="pixel_shuffle").train()
    of = load_processor(tiny(**TOWERS["naflex_prefix"], projector="pixel_shuffle"))
    tensors, (patch_map,) = of.images([noise((200, 70))])
    stated = get_backbone("timm_lm").vision_work(model.config, tensors)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.image_features(**tensors).sum().backward()
    assert sum(stated[4:]) == counter.get_total_flops()
    assert stated.image_tokens == len(patch_map)


@pytest.mark.parametrize("projector", ["linear", "pixel_shuffle", "average_pool", "local_resampler"])
def test_every_projector_does_what_is_promised_of_families(projector: str) -> None:
    name = registered(f"timm_{projector}", projector=projector, image_size=56)
    check_backbone(name, "images", "blank_image", "work")


def test_batch_norms_keep_their_statistics_and_learn() -> None:
    model = model_of("resnet").train()
    tensors, _ = load_processor(tiny(**TOWERS["resnet"])).images([noise((90, 60)), noise((90, 60), 1)])
    before = {name: value.clone() for name, value in model.vision_tower.named_buffers()}
    features = model.image_features(**tensors)
    features.square().sum().backward()
    assert all(torch.equal(before[name], value) for name, value in model.vision_tower.named_buffers())
    assert all(weight.grad is not None for weight in model.vision_tower.parameters())
    with torch.no_grad():
        assert torch.equal(features, model.eval().image_features(**tensors))


@pytest.mark.parametrize("tower", ["dinov3", "convnext", "resnet", "naflex"])
def test_recomputed_towers_have_the_same_gradients_and_are_divided_by_their_blocks(tower: str) -> None:
    tensors, _ = load_processor(tiny(**TOWERS[tower])).images([noise((90, 60))])
    grads = []
    for parts in ([], ["vision"]):
        model = model_of(tower).train()
        assert (enable_checkpointing(model, get_backbone("timm_lm"), parts) > 0) == bool(parts)
        model.image_features(**tensors).square().sum().backward()
        grads.append([weight.grad for weight in model.vision_tower.parameters() if weight.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))
    units = Units.of(PointAndCopyModel.build(tiny(**TOWERS[tower])))
    owned = sum(owner.startswith("backbone.vision_tower") for owner in units.owners.values())
    assert owned > sum(name.startswith("backbone.vision_tower") for name in units.owners) / 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_who_only_answers_may_ask_first_what_a_tower_is(mode: Any) -> None:
    facts = tower_facts(model_of("vit").config.tower_spec)
    tower_facts.cache_clear()
    with mode():
        assert tower_facts(load_backbone(tiny(**TOWERS["vit"])).config.tower_spec) == facts


def test_what_no_feature_depends_on_does_not_learn() -> None:
    for tower, path in (("convnext", "head.norm"), ("siglip2", None)):
        model = model_of(tower)
        still = {name for name, weight in model.vision_tower.named_parameters() if not weight.requires_grad}
        assert still == ({f"{path}.weight", f"{path}.bias"} if path else set())
    assert model.vision_tower.attn_pool is None
    early = model_of("vit", feature_layers=[0])
    assert not any(weight.requires_grad for weight in early.vision_tower.blocks[1].parameters())


# ---------------------------------------------------------------- a resampler, and other refusals


def test_a_resamplers_tokens_have_no_place_and_are_not_pointed_at() -> None:
    config = tiny(projector="resampler", projector_tokens=5)
    for build in (lambda: load_processor(config), lambda: PointAndCopyModel.build(config)):
        with pytest.raises(ValueError, match="none has a place to point at\ntake the projector local_res"):
            build()
    words = make_strategy(RevisitConfig("text_only"))
    of = load_processor(config, revisit=words)
    tensors, (patch_map,) = of.images([noise((70, 50))])
    assert len(patch_map) == 5
    assert not patch_map.spatial.any()
    model = PointAndCopyModel.build(config, revisit=RevisitConfig("text_only"))
    assert len(model.family.encode_images(model.backbone, **tensors)) == 5
    ragged = tiny(**NAFLEX, projector="resampler", projector_tokens=5)
    pair, _ = load_processor(ragged, revisit=words).images([noise((70, 50)), noise((30, 90))])
    assert len(load_backbone(ragged).image_features(**pair)) == 10


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"tower": "vit_tiny_patch16_225"}, {}, "tower is 'vit_tiny_patch16_225'; timm has no .* did you mean"),
    ({"tower": "hf-hub:someone/tower"}, {}, "tower is 'hf-hub:someone/tower'; timm has no such"),
    ({**TOWERS["vit"], "tower_arguments": {"checkpoint_path": "x.pt"}}, {}, "it takes no files"),
    ({**TOWERS["vit"], "tower_arguments": {"depths": 3}}, {}, "tower_arguments is .*depths"),
    ({**TOWERS["vit"], "feature_layers": [7]}, {}, r"feature_layers is \[7\]; .* has 2 layers"),
    ({**TOWERS["resnet"], "feature_layers": [-2, -1]}, {}, "have patches of 16 and 32 pixels"),
    ({"projector": "mpl"}, {}, "projector is 'mpl'; did you mean 'mlp'"),
    ({"language": "qwen3_next"}, {}, "'linear_attention', which carry states past the end"),
    ({**TOWERS["vit"]}, {"size": 112}, "size is .*: vit_tiny_patch16_224: .*doesn't match|size is"),
    ({**TOWERS["vit"]}, {"fit": "keep"}, "fit is 'keep'; the tower vit_tiny_patch16_224 takes squash or pad"),
    (NAFLEX, {"fit": "pad"}, "takes keep"),
    ({**TOWERS["vit"], "projector": "pixel_shuffle", "projector_scale": 4}, {}, "which no cells of 4 fill"),
    ({**TOWERS["vit"]}, {"patch_size": 8}, "need .*'patch_size': 16"),
]


@pytest.mark.parametrize(("sizes", "image", "message"), REFUSED)
def test_parts_that_make_no_model_are_refused(sizes: Any, image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_processor(BackboneConfig("timm_lm", tiny=sizes, image=image))
    assert len(str(error.value).splitlines()) <= 2


def test_a_missing_timm_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'v1lit\[timm\]'"):
        load_processor(tiny(tower="vit_small_patch16_224", tower_arguments={}))
    assert len(get_backbone("timm_lm").patch_map((640, 480))) == 576


def test_dropout_of_a_tower_is_off() -> None:
    arguments = {**VIT, "img_size": 96, "drop_path_rate": 0.5, "proj_drop_rate": 0.5}
    model = load_backbone(tiny(tower="vit_tiny_patch16_224", tower_arguments=arguments)).train()
    pixels = torch.randn(1, 3, 96, 96)
    grid = torch.tensor([[6, 6]])
    with torch.no_grad():
        assert torch.equal(model.image_features(pixels, grid), model.image_features(pixels, grid))


class Llama(TimmLM):
    """Another chat, as somebody gives it to language models that do not know ChatML."""

    chat: ClassVar[Any] = get_backbone("llava").chat


def test_another_chat_is_a_subclass() -> None:
    register_backbone("timm_llama")(Llama)
    of = load_processor(BackboneConfig("timm_llama", tiny={"language": "llama"}))
    assert of.backbone.chat.user == ("USER: ", " ")
    assert isinstance(load_backbone(BackboneConfig("timm_llama")).language_model, nn.Module)
    batch = training_batch("timm_llama", (1, 0))
    assert PointAndCopyModel.build(BackboneConfig("timm_llama"))(
        **inputs(batch), labels=batch.labels
    ).loss.isfinite()
