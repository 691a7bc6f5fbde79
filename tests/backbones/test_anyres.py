"""Base view, tiles, newlines: tokens of LLaVA-NeXT and LLaVA-OneVision are where transformers has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import LlavaNextProcessor, LlavaOnevisionProcessor
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.llava_next.modeling_llava_next import unpad_image

from v1lit.backbones import BackboneConfig, get_backbone
from v1lit.backbones.anyres import best_canvas, fitted_size, unpadded
from v1lit.backbones.load import load_backbone
from v1lit.backbones.patch_embedding import PatchConv2d
from v1lit.backbones.processor import load_processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import encode
from v1lit.data.example import Example, Message
from v1lit.data.images import read_header
from v1lit.grounding.patch_map import NOT_SPATIAL, OVERVIEW, TILE, PatchMap
from v1lit.grounding.region import Region
from v1lit.testing import assert_patch_map
from v1lit.testing.models import build, generate, inputs, mixed, noise, processor
from v1lit.testing.patch_maps import make_blind, painted, rectangles

pytestmark = pytest.mark.dependencies

NAMES = ["llava_next", "llava_onevision"]
sizes = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


# ---------------------------------------------------------------- which tokens there are


@given(st.sampled_from(NAMES), sizes)
@example("llava_next", (1, 3000))
@example("llava_onevision", (3000, 2))
def test_canvas_fit_and_cut_are_those_of_transformers(name: str, size: tuple[int, int]) -> None:
    canvases = get_backbone(name).complete({})["image_grid_pinpoints"]
    width, height = canvas = best_canvas(size, canvases)
    assert (height, width) == tuple(select_best_resolution((size[1], size[0]), canvases))
    picture = torch.empty(3, size[1], size[0], device="meta")
    fitted = get_patch_output_size(picture, (height, width), ChannelDimension.FIRST)
    assert fitted_size(size, canvas) == (fitted[1], fitted[0])
    rows, cols = height // 14, width // 14
    numbers = torch.arange(rows)[None, :, None] * 1000 + torch.arange(cols)
    kept_rows, kept_cols = unpadded(size, rows, cols)
    assert torch.equal(numbers[:, kept_rows, kept_cols], unpad_image(numbers, (size[1], size[0])))


def counted_by_transformers(name: str, size: tuple[int, int]) -> int:
    """Image tokens as the stock processor counts them."""
    options = get_backbone(name).complete({})
    side = options["size"]["height"]
    of = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=options["image_grid_pinpoints"]),
        patch_size=14,
        num_additional_image_tokens=1,
        num_image_tokens=(side // 14) ** 2,
        vision_aspect_ratio="anyres_max_9",
    )
    cls: Any = {"llava_next": LlavaNextProcessor, "llava_onevision": LlavaOnevisionProcessor}[name]
    of._get_unpadded_features = lambda *numbers: cls._get_unpadded_features(of, *numbers)
    tokens: int = cls._get_number_of_features(of, size[1], size[0], side, side)
    return tokens - (name == "llava_next")  # the class token


@given(st.sampled_from(NAMES), sizes)
@example("llava_next", (1, 3000))
@example("llava_onevision", (2304, 2304))
def test_there_are_as_many_tokens_as_the_stock_processor_counts(name: str, size: tuple[int, int]) -> None:
    assert len(get_backbone(name).patch_map(size)) == counted_by_transformers(name, size)


def test_published_layouts() -> None:
    """Figures of ../shared/FEASIBILITY.md: 24x24 and 27x27 tokens of 14 pixels, a newline after each row."""
    next_map = get_backbone("llava_next").patch_map((672, 672))
    assert len(next_map) == 576 + 48 * 49
    assert np.flatnonzero(~next_map.spatial).tolist() == [576 + row * 49 + 48 for row in range(48)]
    assert next_map.boxes[0].tolist() == [0, 0, 28, 28]
    assert next_map.boxes[576 + 49 + 24].tolist() == [336, 14, 350, 28]
    one_map = get_backbone("llava_onevision").patch_map((768, 768))
    assert len(one_map) == 729 + 54 * 55
    last, first = one_map.boxes[729 + 26], one_map.boxes[729 + 27]
    assert (last[2], first[0]) == (378, 384)  # 6 pixels between them, that no token of a tile sees
    between = (379, 0, 383, 10)
    assert one_map.tokens(between, views="tiles") == one_map.tokens(between, views="overview")
    shrunk = get_backbone("llava_onevision").patch_map((2304, 2304))
    assert len(shrunk) == 729 + 81 * 82  # 162x162 would be above 1.21 x 9 x 729


@pytest.mark.parametrize("name", NAMES)
def test_the_rule_chooses_between_base_view_and_tiles(name: str) -> None:
    backbone, corner = get_backbone(name), (0, 0, 10, 10)
    patch_map = backbone.patch_map((800, 600))
    base = len(patch_map.token_views[patch_map.token_views == OVERVIEW])
    assert (patch_map.token_views[:base] == OVERVIEW).all()
    assert set(patch_map.token_views[base:].tolist()) == {TILE, NOT_SPATIAL}
    tiles = backbone.patch_map((800, 600), views="tiles").tokens(corner)
    assert tiles[0] == base
    assert backbone.patch_map((800, 600), views="overview").tokens(corner) == [0]
    assert backbone.patch_map((800, 600), views="all").tokens(corner) == [0, *tiles]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_thinner_than_a_token_may_have_newlines_alone(name: str) -> None:
    patch_map, model = processor(name).patch_map((1, 400)), load_backbone(BackboneConfig(name))
    # Of an even number of columns none is left, of an odd one the middle.
    assert (patch_map.token_views == TILE).any() == (name == "llava_onevision")
    assert patch_map.tokens((0, 0, 1, 10))
    tensors, maps = processor(name).images([noise((1, 400))])
    assert len(get_backbone(name).encode_images(model, **tensors)) == len(patch_map) == len(maps[0])


# ---------------------------------------------------------------- what they see


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("llava_next", (640, 300), {}),
        ("llava_next", (301, 500), {"max_side": 400}),
        ("llava_next", (112, 112), {}),
        ("llava_onevision", (330, 210), {}),
        ("llava_onevision", (150, 470), {}),
        ("llava_onevision", (90, 60), {}),
    ],
)
def test_exactly_the_named_tokens_change(name: str, size: tuple[int, int], options: dict[str, Any]) -> None:
    assert assert_patch_map(name, size, **options) == 6


def test_one_of_several_images_is_one_padded_view_and_a_newline() -> None:
    name, size = "llava_onevision", (200, 120)
    model, of = load_backbone(BackboneConfig(name)), processor(name)
    make_blind(model, of.backbone)

    def features_of(box: Any) -> tuple[torch.Tensor, list[PatchMap]]:
        tensors, maps = of.images([noise((90, 60)), painted(size, box)])
        return of.backbone.encode_images(model, **tensors), maps

    with torch.no_grad():
        blank, maps = features_of(None)
        assert [len(patch_map) for patch_map in maps] == [10, 10]
        assert maps[1] == of.patch_map(size, among=2)
        assert set(maps[1].token_views.tolist()) == {OVERVIEW, NOT_SPATIAL}
        for box in rectangles(maps[1]):
            found = (blank != features_of(box)[0]).any(1).nonzero().flatten().tolist()
            assert found == [10 + token for token in maps[1].tokens(box)]
    assert len(of.patch_map(size)) > 10


@pytest.mark.parametrize("name", NAMES)
def test_newlines_and_nothing_else_are_the_learned_newline(name: str) -> None:
    model, of = load_backbone(BackboneConfig(name)), processor(name)
    tensors, (patch_map,) = of.images([noise((168, 168))])
    with torch.no_grad():
        same = (of.backbone.encode_images(model, **tensors) == model.model.image_newline).all(1)
    assert same.tolist() == (~patch_map.spatial).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_no_region_is_written_as_a_newline(name: str) -> None:
    of = processor(name)
    picture = read_header(_png((168, 112)))
    whole = Example(
        id="whole",
        images=(picture,),
        messages=(Message("user", "<image>\nAll?"), Message("assistant", "<|region_1|>")),
        regions={"<|region_1|>": Region.from_box((0, 0, 168, 112))},
    )
    encoded = encode(whole, of, EncodingConfig())
    pointers = encoded.input_ids[encoded.input_ids >= of.pointer_start] - of.pointer_start
    assert pointers.tolist() == np.flatnonzero(encoded.patch_maps[0].spatial).tolist()
    assert len(pointers) < len(encoded.patch_maps[0])


def _png(size: tuple[int, int]) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    noise(size).save(buffer, "PNG")
    return buffer.getvalue()


# ---------------------------------------------------------------- the stock classes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("together", [1, 3])
def test_features_are_those_of_the_stock_processor_and_class(name: str, together: int) -> None:
    """Padded to one number of tiles, as the stock processor makes them; images of one example, or alone."""
    model, of = load_backbone(BackboneConfig(name)).eval(), processor(name)
    pictures = [noise((168, 168)), noise((90, 200), 1), noise((30, 30), 2)]
    nested = [pictures] if together == 3 and name == "llava_onevision" else pictures
    made = of.image_processor
    stock = made.processor(images=nested, return_tensors="pt", **{**made.arguments, "do_pad": True})
    with torch.no_grad():
        theirs = torch.cat(list(model.get_image_features(**stock, return_dict=True).pooler_output))
        ours = of.backbone.encode_images(model, **of.images(pictures, among=together)[0])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_without_pointers_the_model_generates_what_the_stock_class_does(name: str) -> None:
    from v1lit.data.encode.batch import collate

    model = build(name)
    allowed = [i for i in range(model.config.pointer_start) if i != model.config.image_token_id]
    only_text: dict[str, Any] = {"prefix_allowed_tokens_fn": lambda *_: allowed, "do_sample": False}
    for images in (1, 2):
        batch = collate(mixed(name, (images,)), processor(name).pad_token_id)
        ours = generate(model, batch, **only_text)
        stop = model.config.get_text_config().eos_token_id
        limits = {"max_new_tokens": 10, "min_new_tokens": 10, "eos_token_id": stop, "pad_token_id": 0}
        theirs = model.backbone.generate(**inputs(batch), **limits, **only_text)
        assert torch.equal(ours, theirs[:, batch.input_ids.shape[1] :])


@pytest.mark.parametrize("name", NAMES)
def test_the_towers_patches_are_a_product(name: str) -> None:
    """SigLIP's leaves out the pixels beyond the last whole patch, as its convolution does."""
    tower = load_backbone(BackboneConfig(name)).model.vision_tower
    (cutter,) = [module for module in tower.modules() if isinstance(module, torch.nn.Conv2d)]
    assert isinstance(cutter, PatchConv2d)
    pixels = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(cutter(pixels), torch.nn.Conv2d.forward(cutter, pixels))


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        ("llava_next", {"size": {"height": 336, "width": 300}}, "size is .* a tile is a square"),
        ("llava_next", {"patch_size": 400}, "patch_size is 400; a tile has 336 pixels a side"),
        ("llava_next", {"image_grid_pinpoints": [[336, 500]]}, r"each a multiple of size=336"),
        ("llava_next", {"image_grid_pinpoints": []}, r"give a list of \[height, width\]"),
        ("llava_onevision", {"vision_aspect_ratio": "anyres"}, "give anyres_max_ and a number"),
        ("llava_onevision", {"vision_aspect_ratio": "anyres_max_0"}, "give anyres_max_ and a number"),
    ],
)
def test_image_options_that_no_tile_can_have_are_refused(name: str, image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_backbone(name).patch_map((100, 100), **image)


def test_options_that_are_not_the_models_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image_grid_pinpoints=.*fewer tiles with a lower max_side"):
        load_processor(BackboneConfig("llava_next", image={"size": 56, "image_grid_pinpoints": [[56, 56]]}))
    with pytest.raises(ValueError, match="vision_aspect_ratio=anyres_max_4"):
        load_processor(BackboneConfig("llava_onevision", image={"vision_aspect_ratio": "anyres_max_9"}))
