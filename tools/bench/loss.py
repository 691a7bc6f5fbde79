"""Time and memory of the joint loss, forward and backward, against the published way and the machine's limit.

Usage: python tools/bench/loss.py [--device cpu|cuda] [--json FILE] [--quick]

Every way runs in a process of its own, on the same random inputs. The limit of a time is that of its three
products, logits and the gradients of hidden states and head: 6 x positions x vocabulary x hidden operations
over the fastest large product that is measured in the same run.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from machine import matmul_ceiling
from measure import MeasureError, alternate, in_subprocess, peak_above
from published_loss import IGNORE, published_loss
from rows import Row, print_rows, write_rows
from torch import Tensor

from v1lit.pointer.joint_loss import LossOptions, Pointers, pointer_cross_entropy

Z_WEIGHT = 1e-5


@dataclass(frozen=True)
class Size:
    """What is computed: `rows` sequences of equally many tokens and image tokens."""

    positions: int
    vocabulary: int
    hidden: int
    image_tokens: int
    dtype: str
    supervised: float = 1.0
    rows: int = 4

    @property
    def learned(self) -> int:
        """Supervised positions."""
        return round(self.positions * self.supervised)

    @property
    def products(self) -> float:
        """Operations of the three products over supervised positions."""
        return 6.0 * self.learned * self.vocabulary * self.hidden


SIZES = {
    "cpu": Size(4096, 152_064, 256, 256, "float32"),
    "cuda": Size(16_384, 152_064, 3584, 1024, "bfloat16"),
}
QUICK = {"cpu": Size(64, 1000, 32, 16, "float32"), "cuda": Size(64, 1000, 32, 16, "bfloat16")}


# ---------------------------------------------------------------------- one way, in a process of its own


@dataclass(frozen=True)
class Inputs:
    hidden: Tensor
    head: Tensor
    queries: Tensor
    keys: Tensor
    labels: Tensor

    @staticmethod
    def random(size: Size, device: str) -> Inputs:
        """Leaves with gradients; three of ten targets are pointers."""
        torch.manual_seed(0)
        tokens, dtype = size.positions // size.rows + 1, getattr(torch, size.dtype)

        def leaf(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, device=device) * scale).to(dtype).requires_grad_()

        labels = torch.randint(size.vocabulary, (size.rows, tokens))
        pointing = torch.rand(labels.shape) < 0.3
        labels[pointing] = size.vocabulary + torch.randint(size.image_tokens, (int(pointing.sum()),))
        kept = torch.randperm(size.positions)[: size.learned]
        supervised = torch.zeros(size.positions, dtype=torch.bool)
        supervised[kept] = True
        labels[:, 1:][~supervised.view(size.rows, -1)] = IGNORE
        return Inputs(
            hidden=leaf(size.rows, tokens, size.hidden),
            head=leaf(size.vocabulary, size.hidden, scale=size.hidden**-0.5),
            queries=leaf(size.rows, tokens, size.hidden),
            keys=leaf(size.rows, size.image_tokens, size.hidden),
            labels=labels.to(device),
        )

    def forget(self) -> None:
        for leaf in (self.hidden, self.head, self.queries, self.keys):
            leaf.grad = None


def published(inputs: Inputs) -> Tensor:
    return published_loss(
        inputs.hidden, inputs.head, inputs.queries, inputs.keys, inputs.labels, len(inputs.head)
    )


def ours(inputs: Inputs, implementation: str) -> Tensor:
    """Supervised positions are picked here, so that this is counted."""
    targets = inputs.labels[:, 1:]
    supervised = targets != IGNORE
    pointers = Pointers(
        inputs.queries[:, :-1][supervised],
        inputs.keys.flatten(0, 1),
        tuple(supervised.sum(dim=1).tolist()),
        (inputs.keys.shape[1],) * len(inputs.keys),
        inputs.head.shape[1] ** -0.5,
    )
    hidden, labels = inputs.hidden[:, :-1][supervised], targets[supervised]
    return pointer_cross_entropy(
        hidden,
        inputs.head,
        labels,
        len(inputs.head),
        pointers,
        LossOptions(z_weight=Z_WEIGHT, implementation=implementation),
    ).loss


def liger(inputs: Inputs, sums: torch.dtype | None) -> Tensor:
    """Liger's fused linear cross-entropy: text targets only, without pointers and z-loss."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    hidden = inputs.hidden[:, :-1].flatten(0, 1)
    targets = inputs.labels[:, 1:].flatten()
    targets = torch.where(targets < len(inputs.head), targets, targets % len(inputs.head))
    loss = (
        LigerFusedLinearCrossEntropyLoss()
        if sums is None
        else LigerFusedLinearCrossEntropyLoss(accum_dtype=sums)
    )
    result: Tensor = loss(inputs.head, hidden, targets)
    return result


WAYS: dict[str, Callable[[Inputs], Tensor]] = {
    "published": published,
    "reference": lambda inputs: ours(inputs, "reference"),
    "chunked": lambda inputs: ours(inputs, "chunked"),
    "triton": lambda inputs: ours(inputs, "triton"),
    "liger": lambda inputs: liger(inputs, None),
    "liger float32": lambda inputs: liger(inputs, torch.float32),
}


def measure(way: str, size: Size, device: str, repeats: int) -> dict[str, float]:
    """Peak memory of the first run, in bytes, and the median time of others."""

    def work(inputs: Inputs) -> None:
        inputs.forget()
        WAYS[way](inputs).backward()

    work(Inputs.random(QUICK[device], device))  # libraries load, kernels compile
    inputs = Inputs.random(size, device)
    peak = peak_above(lambda: work(inputs), device)
    return {
        "peak": float(peak),
        "seconds": alternate({"": lambda: work(inputs)}, repeats, warm=False)[""].median,
    }


# ---------------------------------------------------------------------- all of them


@dataclass(frozen=True)
class Report:
    """Rows of one size, as they come."""

    rows: list[Row]
    size: Size
    device: str
    ceiling: float
    """Operations per second."""

    @property
    def judged(self) -> bool:
        """Goals are for the full size."""
        return self.size.vocabulary == SIZES[self.device].vocabulary

    @property
    def command(self) -> str:
        return "python tools/bench/loss.py" + (" --device cuda" if self.device == "cuda" else "")

    @property
    def title(self) -> str:
        share = "all supervised" if self.size.supervised == 1.0 else f"{self.size.supervised:.0%} supervised"
        return f"Loss, {self.size.positions:,} tokens {share}"

    def _add(self, row: Row) -> None:
        print_rows([row])
        self.rows.append(row)

    def run(self, way: str, repeats: int) -> dict[str, float] | None:
        """Measure, and add rows of time and memory."""
        note, found = "", None
        try:
            found = in_subprocess(
                [__file__, "--device", self.device, "--way", way, "--repeats", str(repeats),
                 "--size", json.dumps(asdict(self.size))],
                timeout=600,
            )  # fmt: skip
        except MeasureError as error:
            note = f"failed: {error}"
        limit = self.size.products / self.ceiling
        time, peak = (found["seconds"], found["peak"] / 2**20) if found else (None, None)
        self._add(
            Row(f"{self.title}: {way}, time", time, "s", self.command, limit=limit,
                share=None if time is None else limit / time, note=note)
        )  # fmt: skip
        self._add(Row(f"{self.title}: {way}, peak memory", peak, "MiB", self.command, note=note))
        return found

    def compare(
        self,
        name: str,
        ours: dict[str, float] | None,
        theirs: dict[str, float] | None,
        goals: dict[str, float],
        note: str = "",
    ) -> None:
        """Ratios of time and memory with their goals; `name` is "chunked / published"."""
        for key, goal in goals.items():
            what = "time" if key == "seconds" else "peak memory"
            value = ours[key] / max(theirs[key], 1e-9) if ours and theirs else None
            self._add(
                Row(f"{self.title}: {name}, {what}", value, "x", self.command, goal=f"<= {goal:g}",
                    met=None if value is None or not self.judged else value <= goal, note=note)
            )  # fmt: skip

    def missing(self, name: str, why: str) -> None:
        self._add(Row(f"{self.title}: {name}", None, "s", self.command, note=why))


def cpu_rows(size: Size, ceiling: float) -> list[Row]:
    """Against the published way, which computes the logits of all tokens, supervised or not."""
    everything = Report([], size, "cpu", ceiling)
    baseline = everything.run("published", repeats=1)
    everything.run("reference", repeats=1)
    everything.compare(
        "chunked / published",
        everything.run("chunked", repeats=3),
        baseline,
        {"seconds": 0.85, "peak": 0.05},
        "memory beyond the inputs; the gradient of the head is part of it",
    )
    few = replace(everything, rows=[], size=replace(size, supervised=0.3))
    few.compare(
        "chunked / published",
        few.run("chunked", repeats=3),
        few.run("published", repeats=1),
        {"seconds": 0.3},
    )
    return everything.rows + few.rows


def gpu_rows(size: Size, ceiling: float) -> list[Row]:
    """Against Liger's loss, which has no pointers."""
    report = Report([], size, "cuda", ceiling)
    for way in ("published", "reference", "chunked"):
        report.run(way, repeats=3)
    if find_spec("triton") is None:
        report.missing("triton", "triton is not installed")
        return report.rows
    kernel = report.run("triton", repeats=9)
    if find_spec("liger_kernel") is None:
        report.missing("triton / liger", "liger-kernel is not installed")
        return report.rows
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    other, note = report.run("liger", repeats=9), "its gradient of the head is summed in bfloat16"
    goals = {"seconds": 1.05, "peak": 1.05}
    report.compare("triton / liger", kernel, other, goals, note)
    if "accum_dtype" in inspect.signature(LigerFusedLinearCrossEntropyLoss).parameters:
        other, note = report.run("liger float32", repeats=9), "both sum the gradient of the head in float32"
        report.compare("triton / liger float32", kernel, other, goals, note)
    return report.rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: sees that everything runs")
    parser.add_argument("--positions", type=int, help="instead of 4,096 on a CPU and 16,384 on a GPU")
    for hidden, kind in (("--way", str), ("--size", str), ("--repeats", int)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU, and PyTorch sees none")
    if given.way is not None:
        print(json.dumps(measure(given.way, Size(**json.loads(given.size)), given.device, given.repeats)))
        return 0
    size = (QUICK if given.quick else SIZES)[given.device]
    size = replace(size, positions=given.positions or size.positions)
    ceiling = matmul_ceiling(given.device, getattr(torch, size.dtype), given.quick)
    rows = (gpu_rows if given.device == "cuda" else cpu_rows)(size, ceiling)
    if given.json is not None:
        write_rows(given.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
