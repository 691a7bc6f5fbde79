"""Towers of timm, small ones of every kind, as sizes of the tiny version of `timm_lm`."""

from __future__ import annotations

from typing import Any

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
NAFLEX = {"tower": "naflexvit_base_patch16_siglip", "tower_arguments": VIT}
RESNET = {"channels": [16, 32, 48, 64], "layers": [1, 1, 1, 1], "zero_init_last": False}
SWIN = {"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "img_size": 112, "window_size": 7}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"tower": "vit_tiny_patch16_224", "tower_arguments": {**VIT, "img_size": 96}},
    "siglip2": {
        "tower": "vit_base_patch16_siglip_224.v2_webli",
        "tower_arguments": {**VIT, "img_size": 92, "patch_size": 14},
    },
    "dinov2": {"tower": "vit_small_patch14_reg4_dinov2", "tower_arguments": {**VIT, "img_size": 112}},
    "dinov3": {"tower": "vit_small_patch16_dinov3", "tower_arguments": {**VIT, "img_size": 96}},
    "convnext": {
        "tower": "convnext_atto",
        "tower_arguments": {"depths": [1, 1, 1, 1], "dims": [16, 32, 48, 64]},
    },
    "swin": {"tower": "swin_tiny_patch4_window7_224", "tower_arguments": SWIN},
    "resnet": {"tower": "resnet18", "tower_arguments": RESNET},
    "naflex": NAFLEX,
    "naflex_prefix": {"tower": "naflexvit_base_patch16_gap", "tower_arguments": VIT},
}
PADDED = {
    "tower": "vit_tiny_patch16_224",
    "tower_arguments": {**VIT, "img_size": 96, "dynamic_img_size": True, "dynamic_img_pad": True},
}
"""A ViT that pads what is no whole patch."""
