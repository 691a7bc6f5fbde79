"""Tiny checkpoints in the published layout, and inputs for them, drawn from names.

Every number is a fixed function of a name, by PCG64's raw output: the same in all versions of numpy, torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from mechanism import IGNORED, Mechanism
from torch import Tensor

IMAGE, VISION_START, VISION_END, FIRST_POINTER = 90, 91, 92, 100
OPEN, CLOSE, END = 93, 94, 2
TEXT = range(3, 90)
VALUES_OF_A_PATCH = 3 * 2 * 14 * 14

BASE: dict[str, Any] = {
    "model_type": "v1",
    "architectures": ["V1ForConditionalGeneration"],
    "do_copy": True,
    "copy_extraction_layer": -1,
    "copy_token_start": FIRST_POINTER,
    "tie_copy_heads": False,
    "copy_hidden_size": 32,
    "use_embeddings_as_keys": False,
    "normalize_copy_states": False,
    "use_gate": False,
    "separate_copy_loss": False,
    "z_loss_weight": 1e-5,
    "z_loss_top_k": 40,
    "label_smoothing": False,
    "vocab_size": 108,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]},
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": END,
    "pad_token_id": 0,
    "image_token_id": IMAGE,
    "video_token_id": 95,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
}
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "long_rows": {},
    "tied_gate": {"tie_copy_heads": True, "use_gate": True, "z_loss_weight": 0.0},
    "embed_keys_norm": {
        "use_embeddings_as_keys": True,
        "normalize_copy_states": True,
        "z_loss_weight": 1e-3,
        "z_loss_top_k": 8,
    },
    "separate_small": {"separate_copy_loss": True, "copy_hidden_size": 12, "z_loss_weight": 0.0},
}
DRAWS = {"published": 51, "long_rows": 26, "tied_gate": 58, "embed_keys_norm": 44, "separate_small": 43}
"""Which draw of each variant's weights: one that points and is never close to a tie."""
HEADS = {"tied_gate": 0.3, "embed_keys_norm": 3.0}
"""Size of the heads' weights where 0.6 would point always or never."""
GRIDS = {"long_rows": [(1, 12, 20), (1, 16, 16), (1, 4, 4)]}
"""Frames, rows and columns of patches of each row's image."""
OTHER_GRIDS = [(1, 4, 6), (1, 6, 4), (1, 4, 4)]


def config_of(variant: str) -> dict[str, Any]:
    return {**BASE, **VARIANTS[variant]}


def weights_of(variant: str) -> dict[str, Tensor]:
    """All weights in float32, by their names in a published checkpoint."""
    tensors = {}
    for name, like in Mechanism(config_of(variant)).published_parameters().items():
        drawn = uniform(f"{variant} {DRAWS[variant]} {name}", tuple(like.shape))
        if "norm" in name or name.endswith("ln_q.weight"):
            tensors[name] = 1 + 0.1 * drawn
        else:
            tensors[name] = (HEADS.get(variant, 0.6) if name.startswith("_copy") else 0.25) * drawn
    return tensors


def inputs_of(variant: str) -> dict[str, Tensor]:
    """A batch of three rows, padded on the right, each with an image and four pointers in two regions."""
    grids = GRIDS.get(variant, OTHER_GRIDS)
    rows = [_row(f"{variant} row {number}", grid) for number, grid in enumerate(grids)]
    longest = max(len(ids) for ids, _ in rows)
    patches = sum(high * wide for _, high, wide in grids)
    return {
        "input_ids": torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in rows]),
        "attention_mask": torch.tensor([[int(n < len(ids)) for n in range(longest)] for ids, _ in rows]),
        "pixel_values": 2 * uniform(f"{variant} pixels", (patches, VALUES_OF_A_PATCH)),
        "image_grid_thw": torch.tensor(grids),
    }


def _row(name: str, grid: tuple[int, int, int]) -> tuple[list[int], list[int]]:
    images = grid[1] * grid[2] // 4
    words = whole_numbers(f"{name} words", 12, TEXT)
    pointers = whole_numbers(f"{name} pointers", 4, range(FIRST_POINTER, FIRST_POINTER + images))
    question = [1, *words[:3]]
    image = [VISION_START, *[IMAGE] * images, VISION_END]
    answer = [
        *words[3:7],
        OPEN,
        *pointers[:3],
        CLOSE,
        *words[7:10],
        OPEN,
        pointers[3],
        CLOSE,
        *words[10:],
        END,
    ]
    return question + image + answer, question + [IGNORED] * len(image) + answer


def prompt_length(ids: Sequence[int]) -> int:
    """Up to four words behind the image."""
    return list(ids).index(VISION_END) + 1 + 4


def uniform(name: str, shape: Iterable[int]) -> Tensor:
    """float32 numbers from [-1, 1), exact multiples of 2**-23."""
    shape = tuple(shape)
    raw = _raw(name, int(np.prod(shape, dtype=np.int64))) >> np.uint64(40)
    return torch.from_numpy((raw.astype(np.float64) / 2**23 - 1).astype(np.float32).reshape(shape))


def whole_numbers(name: str, count: int, among: range) -> list[int]:
    return [among[int(number) % len(among)] for number in _raw(name, count)]


def _raw(name: str, count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")
    return np.asarray(np.random.PCG64(seed).random_raw(count), dtype=np.uint64)
