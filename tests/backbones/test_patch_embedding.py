"""The patch embedding as a product gives what the convolution gives, gradients and names included."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from v1lit.backbones import BackboneConfig, get_backbone
from v1lit.backbones.load import load_backbone
from v1lit.backbones.patch_embedding import PatchConv2d, speed_up_patch_embedding

pytestmark = pytest.mark.dependencies

FAMILIES = ["llava", "internvl"]


def pair(bias: bool = True, kernel: tuple[int, int] = (4, 4)) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The stock convolution, and a copy of it that computes a product."""
    torch.manual_seed(0)
    stock = nn.Conv2d(3, 5, kernel, stride=kernel, bias=bias).double()
    fast = copy.deepcopy(stock)
    speed_up_patch_embedding(fast)
    assert type(stock) is nn.Conv2d
    assert type(fast) is PatchConv2d
    return stock, fast


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def transposed(images: Tensor) -> Tensor:
    return images.transpose(2, 3).contiguous().transpose(2, 3)


def every_second_row(images: Tensor) -> Tensor:
    return images.repeat_interleave(2, dim=2)[:, :, ::2]


LAYOUTS = {
    "contiguous": Tensor.contiguous,
    "channels_last": lambda images: images.contiguous(memory_format=torch.channels_last),
    "transposed": transposed,
    "every_second_row": every_second_row,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (12, 8), (11, 13), (4, 7)], ids=str)
def test_values_and_gradients_are_those_of_the_convolution(
    size: tuple[int, int], bias: bool, layout: str
) -> None:
    stock, fast = pair(bias)
    images = LAYOUTS[layout](noise(2, 3, *size))
    assert images.is_contiguous() == (layout == "contiguous")
    inputs = [images.detach().requires_grad_() for _ in range(2)]
    outputs = [module(image) for module, image in zip((stock, fast), inputs, strict=True)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.backward(noise(*output.shape))
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(fast.get_parameter(name).grad, parameter.grad, msg=name)


def test_kernels_need_not_be_square() -> None:
    stock, fast = pair(kernel=(2, 5))
    torch.testing.assert_close(fast(noise(2, 3, 9, 11)), stock(noise(2, 3, 9, 11)))


def test_an_image_below_one_patch_has_no_patches() -> None:
    _, fast = pair()
    assert fast(noise(1, 3, 3, 8)).shape == (1, 5, 0, 2)


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(3, 6, 4, stride=2),
        nn.Conv2d(3, 6, 4, stride=4, padding=1),
        nn.Conv2d(3, 6, 4, stride=4, dilation=2),
        nn.Conv2d(3, 6, 4, stride=4, groups=3),
        nn.Conv2d(3, 6, 1, stride=1, padding="same"),
    ],
    ids=["overlapping", "padded", "dilated", "grouped", "same"],
)
def test_other_convolutions_are_left_alone(other: nn.Conv2d) -> None:
    speed_up_patch_embedding(other)
    assert type(other) is nn.Conv2d


@pytest.mark.parametrize("name", FAMILIES)
def test_the_family_uses_it_under_the_stock_names(name: str) -> None:
    torch.manual_seed(0)
    model = load_backbone(BackboneConfig(name))
    assert sum(type(module) is PatchConv2d for module in model.modules()) == 1
    stock = type(model)(copy.deepcopy(model.config))
    assert not any(type(module) is PatchConv2d for module in stock.modules())
    assert list(stock.state_dict()) == list(model.state_dict())
    stock.load_state_dict(model.state_dict())
    side = model.config.vision_config.image_size
    shape = (3, 3, side, side) if isinstance(side, int) else (3, 3, *side)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    features = [get_backbone(name).encode_images(one, pixel_values=images) for one in (model, stock)]
    torch.testing.assert_close(*features, rtol=1e-5, atol=1e-6)
    for feature in features:
        feature.square().sum().backward()
    for path, parameter in stock.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(model.get_parameter(path).grad, parameter.grad, msg=path)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_half_precision_tower_takes_full_precision_pixels(name: str) -> None:
    torch.manual_seed(0)
    model = load_backbone(BackboneConfig(name, dtype="bfloat16"))
    pixels = get_backbone(name).blank_image(model)["pixel_values"]
    assert pixels.dtype == torch.bfloat16
    assert get_backbone(name).encode_images(model, pixel_values=pixels.float()).dtype == torch.bfloat16
