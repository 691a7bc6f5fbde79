"""The fastest that a device can multiply matrices: published where it is known, else measured."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import lru_cache
from timeit import timeit

import torch

TERA = 1e12

# Dense peaks in TFLOP/s from the maker's data sheets (figures "with sparsity" are twice these), by the name
# that torch gives the device, without "NVIDIA" in front. Slices of a card (MIG) do not match: measured.
PUBLISHED_TFLOPS: tuple[tuple[str, dict[str, float]], ...] = (
    # NVIDIA V100 data sheet, 2020 (SXM2). No bfloat16, no TF32.
    (r"(Tesla )?V100-SXM2-.*", {"float16": 125, "float32": 15.7}),
    # NVIDIA T4 data sheet, 2019.
    (r"(Tesla )?T4", {"float16": 65, "float32": 8.1}),
    # NVIDIA A100 data sheet, 2021; the same for PCIe and SXM.
    (r"A100[ -][A-Za-z0-9 -]+", {"bfloat16": 312, "float16": 312, "tf32": 156, "float32": 19.5}),
    # NVIDIA A30, A40, A10 data sheets, 2021. The A10G of AWS is another card.
    (r"A30", {"bfloat16": 165, "float16": 165, "tf32": 82, "float32": 10.3}),
    (r"A40", {"bfloat16": 149.7, "float16": 149.7, "tf32": 74.8, "float32": 37.4}),
    (r"A10", {"bfloat16": 125, "float16": 125, "tf32": 62.5, "float32": 31.2}),
    # NVIDIA L4, L40, L40S data sheets, 2023.
    (r"L4", {"bfloat16": 121, "float16": 121, "tf32": 60, "float32": 30.3}),
    (r"L40", {"bfloat16": 181, "float16": 181, "tf32": 90.5, "float32": 90.5}),
    (r"L40S", {"bfloat16": 362, "float16": 362, "tf32": 183, "float32": 91.6}),
    # NVIDIA GA102 (2020) and Ada (2022) white papers; half precision with float32 accumulation.
    (r"GeForce RTX 3090", {"bfloat16": 71, "float16": 71, "tf32": 35.6, "float32": 35.6}),
    (r"GeForce RTX 4090", {"bfloat16": 165.2, "float16": 165.2, "tf32": 82.6, "float32": 82.6}),
    # NVIDIA H100 data sheet, 2023: PCIe (first edition), NVL, SXM5.
    (r"H100 PCIe", {"bfloat16": 756, "float16": 756, "tf32": 378, "float32": 51}),
    (r"H100 NVL", {"bfloat16": 835, "float16": 835, "tf32": 417, "float32": 60}),
    (r"H100 80GB HBM3", {"bfloat16": 989, "float16": 989, "tf32": 494, "float32": 67}),
    # NVIDIA H200 and GH200 data sheets, 2024: the H100's arithmetic with more memory.
    (r"H200|GH200 480GB", {"bfloat16": 989, "float16": 989, "tf32": 494, "float32": 67}),
    (r"H200 NVL", {"bfloat16": 835, "float16": 835, "tf32": 417, "float32": 60}),
    # NVIDIA HGX B200 data sheet, 2024, an eighth of the board.
    (r"B200", {"bfloat16": 2250, "float16": 2250, "tf32": 1125, "float32": 75}),
)


@dataclass(frozen=True)
class Peak:
    """Operations per second of one device, and where the number is from."""

    flops: float
    source: str


def find_peak(device: torch.device, kind: str, given_tflops: float | None = None) -> Peak:
    """The peak for products of `kind`: "bfloat16", "float16", "tf32" or "float32".

    What was given, else what was published for this device, else what a product of two large matrices reaches
    here and now. Raises RuntimeError where that cannot be measured either.
    """
    if given_tflops is not None:
        return Peak(given_tflops * TERA, "run.peak_tflops")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    published = published_tflops(name, kind) if device.type == "cuda" else None
    if published is not None:
        return Peak(published * TERA, f"published for {name} in {kind}")
    source = f"measured on this {name}, product of two matrices in {kind}"
    return Peak(measured_peak(str(device), kind), source)


def published_tflops(name: str, kind: str) -> float | None:
    """The published peak of a device by the name torch gives it, TFLOP/s; None for an unknown one."""
    name = name.removeprefix("NVIDIA ")
    return next((peaks.get(kind) for pattern, peaks in PUBLISHED_TFLOPS if re.fullmatch(pattern, name)), None)


def product_kind(precision: str, weights: torch.dtype, device: torch.device) -> str:
    """In what the matrix products of a run are computed. precision: Lightning's, such as "bf16-mixed"."""
    half = {"bf16": "bfloat16", "16": "float16"}.get(str(precision).split("-")[0])
    kind = half or str(weights).removeprefix("torch.")
    if kind == "float32" and device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return kind


@lru_cache
def measured_peak(device: str, kind: str, seconds: float = 0.3) -> float:
    """Operations per second of the fastest of several products of square matrices, tried for `seconds`."""
    dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
    side = 8192 if device.startswith("cuda") else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        left @ right
        if not device.startswith("cpu"):
            torch.accelerator.synchronize()

    multiply()
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        best = min(best, timeit(multiply, number=1))
    return 2 * side**3 / best
