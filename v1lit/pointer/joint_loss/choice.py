"""Which implementation computes the loss, and why."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import torch

from v1lit.errors import OptionError, name_allowed
from v1lit.pointer.joint_loss.chunked import chunked_terms
from v1lit.pointer.joint_loss.reference import reference_terms
from v1lit.pointer.joint_loss.rows import LogitRows, torch_rows
from v1lit.pointer.joint_loss.terms import JointRows, LossOptions, Terms

IMPLEMENTATIONS = ("auto", "reference", "chunked", "triton")


class LossChoice(NamedTuple):
    """The implementation that computes the loss, and why."""

    name: str
    line: str
    """What was chosen and why, as the log says it."""


def choose_loss(
    wanted: str, device: torch.device, dtype: torch.dtype, z_top_k: int | None = None
) -> LossChoice:
    """The implementation for products in `dtype` on `device`.

    "auto" is `triton` where it works, which is tried once, and gains something: half precision on a GPU; else
    `chunked`. Raises ValueError for an unknown name, and for `triton` where that does not work.
    """
    if wanted not in IMPLEMENTATIONS:
        why = name_allowed(wanted, IMPLEMENTATIONS)
        raise OptionError("loss_implementation", wanted, why, "model.pointer")
    if wanted in ("reference", "chunked"):
        return LossChoice(wanted, f"loss: {wanted}, as asked for")
    obstacle = _why_not_triton(device, dtype, z_top_k)
    if wanted == "auto" and obstacle is None and dtype == torch.float32:
        obstacle = "it gains nothing in float32"
    obstacle = obstacle or _trial(device, dtype)
    if wanted == "triton" and obstacle is not None:
        why = f"{obstacle}; take 'chunked', or 'auto', which takes what works"
        raise OptionError("loss_implementation", wanted, why, "model.pointer")
    if wanted == "triton":
        return LossChoice("triton", "loss: triton, as asked for")
    if obstacle is None:
        return LossChoice("triton", f"loss: triton, for {str(dtype).removeprefix('torch.')} on a GPU")
    return LossChoice("chunked", f"loss: chunked; not triton: {obstacle}")


def compute(rows: JointRows, options: LossOptions, reduce: bool) -> Terms:
    """The terms of `rows` by the implementation that `options` name, which is not "auto"."""
    if options.implementation == "reference":
        return reference_terms(rows, options, reduce)
    if options.implementation == "chunked":
        return chunked_terms(rows, options, reduce, torch_rows)
    from v1lit.pointer.joint_loss.triton_rows import triton_rows

    return chunked_terms(rows, options, reduce, triton_rows)


def _why_not_triton(device: torch.device, dtype: torch.dtype, z_top_k: int | None) -> str | None:
    """The first thing in the way of `triton`, or None."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it needs a GPU, and the model is on {device.type}"
    if dtype == torch.float64:
        return "it computes in float32, and the products are in float64"
    if z_top_k is not None:
        return "it computes the z-loss over all logits, and pointer.z_top_k is set"
    return None


@lru_cache(maxsize=8)
def _trial(device: torch.device, dtype: torch.dtype) -> str | None:
    """What is wrong with the kernel on `device`, where two rows are compared with plain torch, or None."""
    vocabulary, width, tokens = 50, 64, (14, 5)
    try:
        from v1lit.pointer.joint_loss.triton_rows import triton_rows

        logits = torch.linspace(-3, 3, 2 * width, device=device).view(2, width).to(dtype)
        logits[1, vocabulary + tokens[1] :] = torch.finfo(dtype).min
        classes = torch.tensor([vocabulary + n for n in tokens], dtype=torch.int32, device=device)
        labels = torch.tensor([7, vocabulary + 2], device=device)
        weights = torch.tensor([0.5, 2.0], device=device)
        rows = LogitRows(logits, labels, classes, weights, vocabulary, LossOptions(z_weight=0.01))
        ours = rows._replace(logits=logits.clone())
        pairs = zip((*triton_rows(ours), ours.logits), (*torch_rows(rows), logits), strict=True)
        relative = 2 * torch.finfo(dtype).eps
        close = all(torch.allclose(a.float(), b.float(), rtol=relative, atol=1e-5) for a, b in pairs)
    except Exception as error:  # of the compiler, the driver, the build: each has its own
        first = str(error).strip().partition("\n")[0]
        return f"it fails here: {type(error).__name__}: {first}"
    return None if close else "it fails here: its results are not those of plain torch"
