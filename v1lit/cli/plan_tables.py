"""The tables of `v1lit plan`."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from v1lit.console import Console

GB = 1e9
KINDS = {
    "weights": "weights",
    "moments": "moments of the optimizer",
    "gradients": "gradients",
    "gathered": "gathered units, buffers of what is sent",
    "copies": "weights copied for autocast",
    "activations": "activations",
    "loss": "loss: logits, gradient of the head",
}


def show(report: dict[str, Any], console: Console) -> None:
    """Print a plan."""
    batch, speed = report["micro_batch"], report["speed"]
    world = report["nodes"] * report["gpus_per_node"]
    console.print(
        f"{report['backbone']}, {report['strategy']}, {report['precision']}, {report['nodes']} x "
        f"{report['gpus_per_node']} GPUs; micro-batches of {batch['examples']} examples, {batch['tokens']:,} "
        f"tokens ({batch['image_tokens']:,} of images), {batch['accumulate']} accumulated"
    )
    console.print(_parameters(report))
    console.print(_memory(report))
    for line in _verdict(report):
        console.print(line)
    console.print(_speed(speed, world))
    console.print(_assumed(report["assumed"]))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _parameters(report: dict[str, Any]) -> Table:
    table = _table(
        "what is kept, GB of a GPU", "part", "parameters", "learned", "weights", "gradients", "moments"
    )
    for part, size in report["parameters"].items():
        kept = [f"{value / GB:,.2f}" for value in report["parts"][part].values()]
        table.add_row(part, f"{size['all']:,}", f"{size['learned']:,}", *kept)
    sizes, kept = report["parameters"].values(), report["parts"].values()
    numbers = [f"{sum(size[name] for size in sizes):,}" for name in ("all", "learned")]
    sums = [f"{sum(one[name] for one in kept) / GB:,.2f}" for name in ("weights", "gradients", "moments")]
    table.add_section()
    table.add_row("all", *numbers, *sums)
    return table


def _memory(report: dict[str, Any]) -> Table:
    memory = report["memory"]
    table = _table(f"fullest moment of a step: {memory['moment']}", "on every GPU", "GB")
    for kind, words in KINDS.items():
        table.add_row(words, f"{memory[kind] / GB:,.2f}")
    table.add_section()
    table.add_row("all", f"{memory['total'] / GB:,.2f}")
    return table


def _verdict(report: dict[str, Any]) -> list[str]:
    memory, largest, of = report["memory"], report["largest"], report["activations"]
    lines = [
        f"activations at the end of the forward pass: {of['with'] / GB:,.2f} GB with checkpointing of "
        f"language and vision, {of['without'] / GB:,.2f} GB without; the recipe: "
        f"[{', '.join(report['checkpointing'])}]",
        f"{'fits' if report['fits'] else 'does not fit'}: {memory['total'] / GB:,.1f} GB of "
        f"{memory['limit'] / GB:,.1f} GB that may be used",
    ]
    if largest:
        lines.append(
            f"largest micro-batch: {largest['examples']} examples, {largest['tokens']:,} tokens "
            f"({largest['total'] / GB:,.1f} GB)"
        )
    elif not report["changes"]:
        lines.append("not even one example fits")
    if report["changes"]:
        lines.append("what to change, each after those before it:")
        lines += [f"  {change['total'] / GB:8,.1f} GB  {change['what']}" for change in report["changes"]]
        if report["changes"][-1]["total"] > memory["limit"]:
            lines.append("  and still it does not fit: shorter examples (--tokens), or GPUs with more memory")
    return lines


def _speed(speed: dict[str, Any], world: int) -> Table:
    table = _table("speed", "of a step", "")
    table.add_row("tokens of all GPUs", f"{speed['tokens_per_step']:,}")
    table.add_row("TFLOP on a GPU", f"{speed['flops_per_gpu'] / 1e12:,.1f}")
    table.add_row("seconds of computing", f"{speed['computing']:,.2f}")
    table.add_row("GB into a GPU, from all others", f"{speed['sent_inside'] / GB:,.1f}")
    table.add_row("GB into a GPU, from other nodes", f"{speed['sent_between'] / GB:,.1f}")
    table.add_row("seconds of sending", f"{speed['sending']:,.2f}")
    table.add_section()
    table.add_row("tokens per second", f"{speed['tokens_per_second']:,.0f}")
    table.add_row("share of the peak (MFU)", f"{speed['mfu']:.0%}")
    if speed["hours"] is not None:
        table.add_row(f"hours of {speed['steps']:,} steps", f"{speed['hours']:,.1f}")
        table.add_row("GPU-hours", f"{speed['gpu_hours']:,.0f}")
    billion = speed["hours_of_a_billion_tokens"]
    table.add_row("hours of 10^9 tokens", f"{billion:,.1f}")
    table.add_row("GPU-hours of 10^9 tokens", f"{billion * world:,.0f}")
    return table


def _assumed(assumed: dict[str, Any]) -> str:
    image = "no image" if assumed["image"] is None else "one image of {}x{} pixels".format(*assumed["image"])
    return (
        f"assumed: examples of {assumed['tokens_of_an_example']:,} tokens with {image} (--tokens, --image); "
        f"{assumed['mfu']:.0%} of {assumed['peak_tflops']:,.0f} TFLOP/s (--mfu, --gpu); "
        f"{assumed['link_inside'] / GB:,.0f} GB/s into a GPU inside a node and "
        f"{assumed['link_between'] / GB:,.0f} from others (--link), all of it behind "
        "computing where that takes longer"
    )


def show_scale(rows: list[dict[str, Any]], setting: Any, cluster: Any, console: Console) -> None:
    """Print the table of many numbers of GPUs as Markdown, which docs can take."""
    from v1lit.plan.report import assumptions

    names = ("GPUs", "nodes", "GB of a GPU", "examples a step", "computing, s", "sending, s", "tokens/s",
             "MFU", "of one node", "hours of 10^9 tokens")  # fmt: skip
    print(f"| {' | '.join(names)} |\n|{' --: |' * len(names)}")
    for row in rows:
        print(
            f"| {row['gpus']:,} | {row['nodes']} | {row['memory'] / GB:.1f} | {row['examples_per_step']:,} "
            f"| {row['computing']:.2f} | {row['sending']:.2f} | {row['tokens_per_second']:,.0f} "
            f"| {row['mfu']:.0%} | {row['efficiency']:.0%} | {row['hours_of_a_billion_tokens']:.2f} |"
        )
    console.print()
    console.print(_assumed(assumptions(setting, cluster)))
