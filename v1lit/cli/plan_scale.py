"""The table of `v1lit plan --scale`, and what a plan takes for granted."""

from __future__ import annotations

from typing import Any

from v1lit.console import Console

COLUMNS = ("GPUs", "nodes", "GB of a GPU", "examples a step", "computing, s", "sending, s", "tokens/s",
                 "MFU", "of one node", "hours of 10^9 tokens")  # fmt: skip
GB = 1e9


def show_scale(rows: list[dict[str, Any]], setting: Any, cluster: Any, console: Console) -> None:
    """Print the table of many numbers of GPUs as Markdown, which docs can take."""
    from v1lit.plan.report import assumptions

    print(f"| {' | '.join(COLUMNS)} |\n|{' --: |' * len(COLUMNS)}")
    for row in rows:
        print(
            f"| {row['gpus']:,} | {row['nodes']} | {row['memory'] / GB:.1f} | {row['examples_per_step']:,} "
            f"| {row['computing']:.2f} | {row['sending']:.2f} | {row['tokens_per_second']:,.0f} "
            f"| {row['mfu']:.0%} | {row['efficiency']:.0%} | {row['hours_of_a_billion_tokens']:.2f} |"
        )
    console.print()
    console.print(assumed(assumptions(setting, cluster)))


def assumed(facts: dict[str, Any]) -> str:
    """What a plan takes for granted, in words, from `v1lit.plan.report.assumptions`."""
    image = "no image" if facts["image"] is None else "one image of {}x{} pixels".format(*facts["image"])
    return (
        f"assumed: examples of {facts['tokens_of_an_example']:,} tokens with {image} (--tokens, --image); "
        f"{facts['mfu']:.0%} of {facts['peak_tflops']:,.0f} TFLOP/s (--mfu, --gpu); "
        f"{facts['link_inside'] / GB:,.0f} GB/s into a GPU inside a node and "
        f"{facts['link_between'] / GB:,.0f} from others (--link), all of it behind "
        "computing where that takes longer"
    )
