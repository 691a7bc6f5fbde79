"""The operations behind a limit are those that PyTorch counts."""

from __future__ import annotations

import limits
import pytest
import step
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def test_operations_are_those_that_are_counted() -> None:
    bench = step.Bench(step.QUICK)
    step.set_pointer_options(bench.model, loss_implementation="reference")  # all of its products are counted
    # Attention as matrix products, which every version of torch counts; it is to later tokens as well.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        bench.v1lit(None).backward()
    needed = limits.step_operations(bench.model, bench.batch)
    counted = needed + limits.micro_batches_per_step(bench.model, bench.batch)["language"].attention
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert limits.step_limit(bench.model, bench.batch, 2e9) == pytest.approx(needed / 2e9)
