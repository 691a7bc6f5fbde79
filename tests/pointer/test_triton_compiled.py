"""What a GPU would run: the kernel compiled without one, and run where there is one."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.loss_cases import Shape, errors, make_rows, results

pytestmark = pytest.mark.dependencies

triton = pytest.importorskip("triton", reason="triton is not installed")

KINDS = {"bf16": 2, "fp16": 2, "fp32": 4}


@pytest.mark.parametrize("smooth", [False, True], ids=["", "smooth"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_compiles_for_a_gpu_and_reads_16_bytes_at_a_time(kind: str, smooth: bool) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from v1lit.pointer.joint_loss.triton_rows import BLOCK, _row

    types = [f"*{kind}", "i32", "i32", "*i64", "*i32", "*fp32", "*fp32", "*fp32", "*i64", "fp32", "fp32"]
    aligned = {(n,): [["tt.divisibility", 16]] for n in range(9)}
    source = ASTSource(
        _row,
        dict(zip(_row.arg_names, [*types, *["constexpr"] * 3], strict=True)),
        constexprs={"SMOOTH": smooth, "GRADIENT": True, "BLOCK": BLOCK},
        attrs=aligned,
    )
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 16}).asm["ptx"]
    wide = KINDS[kind] * BLOCK // (16 * 32 * 16)  # accesses of 16 bytes by 16 warps, to each block
    assert len(re.findall(r"ld\.global\.v4", code)) == 2 * wide
    assert len(re.findall(r"st\.global\.v4", code)) == wide


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_many_columns_and_chunks_on_a_gpu(dtype: torch.dtype) -> None:
    """A vocabulary of many blocks that ends inside one, in chunks whose size is left to the loss."""
    shape = Shape(positions=(1500, 700), image_tokens=(300, 0), start=40_001, vocabulary=40_100)
    rows = make_rows(shape, dtype, gate=True)
    options = {"z_weight": 1e-4, "label_smoothing": 0.05}
    truth = results(rows.to(torch.float32), implementation="reference", **options)
    naive = errors(results(rows, implementation="reference", **options), truth)
    for name, error in errors(results(rows, implementation="triton", **options), truth).items():
        assert error <= 2 * naive[name] + torch.finfo(dtype).eps / 2, name
