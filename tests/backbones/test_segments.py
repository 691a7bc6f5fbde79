"""Segments say what kernels ask of them, and positions start anew in each, for every family."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from v1lit.backbones import BackboneConfig, list_backbones
from v1lit.backbones import segments as module
from v1lit.backbones.load import load_backbone
from v1lit.backbones.processor import Processor, load_processor
from v1lit.backbones.segments import Segments, packed_positions
from v1lit.grounding.patch_map import PatchMap

pytestmark = pytest.mark.dependencies

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6).map(tuple)
SIZES = [(56, 84), (112, 56), (168, 112)]


@given(LENGTHS)
def test_bounds_and_owners_describe_the_same_segments(lengths: tuple[int, ...]) -> None:
    segments = Segments(lengths)
    bounds, owners = segments.bounds("cpu"), segments.owners("cpu")
    assert bounds.dtype == torch.int32
    assert owners.dtype == torch.int64
    assert bounds.tolist() == [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    assert owners.tolist() == [number for number, length in enumerate(lengths) for _ in range(length)]
    assert (segments.tokens, segments.longest) == (len(owners), int(bounds.diff().max()))


@pytest.mark.parametrize("lengths", [(), (3, 0, 2), (-1,)])
def test_segments_without_tokens_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one token each"):
        Segments(lengths)


@pytest.mark.parametrize("name", ["auto", "spda"])
def test_a_kernel_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="allowed: eager, flash_attention_2, flex_attention, sdpa, varlen"):
        Segments((1,), name)


def test_what_inference_asked_for_first_can_still_be_trained_with() -> None:
    module._bounds.cache_clear()
    module._owners.cache_clear()
    with torch.inference_mode():
        tensors = [Segments((3, 4)).bounds("cpu"), Segments((3, 4)).owners("cpu")]
    assert not any(tensor.is_inference() for tensor in tensors)


def row(processor: Processor, *parts: int | PatchMap) -> Tensor:
    """Numbers are that many text tokens, a patch map is its image."""
    image = processor.image_token_id
    return torch.tensor([t for p in parts for t in ([200] * p if isinstance(p, int) else [image] * len(p))])


@pytest.mark.parametrize("name", list_backbones())
def test_positions_of_a_packed_row_are_those_of_each_example_alone(name: str) -> None:
    from PIL import Image

    config = BackboneConfig(name)
    model, processor = load_backbone(config), load_processor(config)
    images = [Image.new("RGB", size) for size in SIZES]
    maps = processor.images(images)[1]
    # Two images in one example, an example of one token, one without an image, one that ends in an image.
    examples = [
        row(processor, 3, maps[0], 2, maps[1], 4),
        row(processor, 1),
        row(processor, 6),
        row(processor, 1, maps[2]),
    ]
    owned = [images[:2], [], [], images[2:]]
    alone = [
        processor.backbone.positions(model, ids[None], **(processor.images(own)[0] if own else {}))
        for ids, own in zip(examples, owned, strict=True)
    ]
    packed = packed_positions(
        processor.backbone,
        model,
        torch.cat(examples)[None],
        Segments(tuple(map(len, examples))),
        **processor.images(images)[0],
    )
    assert torch.equal(packed, torch.cat(alone, dim=-1))
    assert packed.shape == ((3, 1) if name.startswith("qwen") else (1,)) + (sum(map(len, examples)),)


def test_pixels_are_not_fetched_for_positions() -> None:
    config = BackboneConfig("qwen2_5_vl")
    model, processor = load_backbone(config), load_processor(config)
    ids = torch.tensor([[5, *[processor.image_token_id] * 4, 5]])
    grid = torch.tensor([[1, 4, 4]])
    # Nothing can be copied out of a tensor on the device "meta".
    pixels = torch.empty(16, 3 * 2 * 14 * 14, device="meta")
    inputs = {"pixel_values": pixels, "image_grid_thw": grid}
    positions = packed_positions(processor.backbone, model, ids, Segments((6,)), **inputs)
    assert positions[:, 0, -1].tolist() == [3, 3, 3]


def test_segments_that_do_not_fill_the_row_are_refused() -> None:
    config = BackboneConfig("llava")
    model, processor = load_backbone(config), load_processor(config)
    for shape in [(1, 6), (2, 5)]:
        with pytest.raises(ValueError, match=r"5 tokens need input_ids \[1, 5\], not \[" + f"{shape[0]}"):
            packed_positions(processor.backbone, model, torch.ones(shape).long(), Segments((3, 2)))
