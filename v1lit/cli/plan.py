"""`v1lit plan RECIPE`: whether it fits into the GPUs' memory, how fast it would be, and what to change."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.table import Table

from v1lit.cli.errors import Parser, UserError, a_path
from v1lit.cli.plan_scale import assumed, show_scale
from v1lit.cli.recipe import compose
from v1lit.cli.stage_recipes import each_stage
from v1lit.console import Console, screen
from v1lit.errors import OptionError

ABOUT = "Plan a run without GPUs and without weights: parameters, memory of a GPU, time, and what to change."
MORE = "--key=value changes the recipe as in `v1lit run`."
SCALED = (8, 16, 32, 64, 128, 256, 512, 1024)
GPU = "H100 80GB HBM3"
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


def main(argv: Sequence[str]) -> int:
    """Run `v1lit plan`; returns 0 if it fits, 1 if not."""
    options, changes = _parser().read_with_changes(argv)
    if not options.json and (code := each_stage(main, argv, options.recipe, changes)) is not None:
        return code
    recipe = compose(options.recipe, changes)
    from v1lit.cli.recipe_cli import RecipeCLI
    from v1lit.plan.report import lengths_told, make_report, scaled
    from v1lit.training.quiet import quiet

    with quiet(), recipe.options(), _flags():
        cli = RecipeCLI(recipe, parse_only=True)
        config = cli.config.as_dict()
        setting, cluster = _setting(options, config), _cluster(options, config)
        limit = options.gpu_memory * (1 - options.reserve) * 1e9
        rows, why = _rows(options, cli, setting)
        if options.scale:
            scale = scaled(setting, cluster, SCALED, rows)
        else:
            steps = _steps(options, config, setting, rows)
            report = make_report(setting, cluster, limit, steps, rows, why)
    if options.scale:
        if options.json:
            print(json.dumps(scale, indent=1))
        else:
            show_scale(scale, setting, cluster, screen())
            screen().print(_lengths(lengths_told(setting, rows, why)))
        return 0
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        _show(report, screen())
    return 0 if report["fits"] else 1


@contextmanager
def _flags() -> Iterator[None]:
    """Make a UserError of an OptionError about a flag, which no file has."""
    try:
        yield
    except OptionError as error:
        if error.field.startswith("--"):
            raise UserError(error.told()) from error
        raise


def _parser() -> Parser:
    parser = Parser(prog="v1lit plan", description=ABOUT, epilog=MORE)
    add = parser.add_argument
    add("recipe", metavar="RECIPE")
    add("--nodes", type=_count, help="nodes; the recipe's trainer.num_nodes when not given")
    add("--gpus-per-node", type=_count, help="GPUs of a node; the recipe's trainer.devices when not given")
    add("--gpu-memory", type=_positive, default=80.0, help="GB (10^9 bytes) of a GPU; default 80")
    add(
        "--reserve",
        type=_share,
        default=0.1,
        help="share of it left for the context, NCCL and gaps; default 0.1",
    )
    add("--gpu", default=GPU, help=f"GPU whose published peak is taken, as torch calls it; default {GPU}")
    add("--peak-tflops", type=_positive, help="the peak in TFLOP/s, of a GPU that is not known by name")
    add("--mfu", type=_share, default=0.4,
        help="share of the peak that is reached while computing; default 0.4")  # fmt: skip
    add("--link", type=_links, default=(450.0, 50.0), metavar="INSIDE,BETWEEN",
        help="GB/s into a GPU inside a node, and from other nodes; default 450,50")  # fmt: skip
    add("--image", type=_image, default=(672, 504), metavar="WxH",
        help="pixels of the one image of an example, or none; default 672x504")  # fmt: skip
    add(
        "--tokens",
        type=_count,
        help="tokens of an example, for memory and time; when not given, data.encoding.max_tokens of the "
        "recipe for memory, and for time the table of lengths of its data, if it has one here",
    )
    add("--examples", type=_count, help="training examples of an epoch, for the hours of the run")
    add(
        "--config",
        type=a_path,
        metavar="PATH",
        help="config.json of the backbone, where its weights are not here",
    )
    add("--scale", action="store_true", help="show instead the same on 8 to 1,024 GPUs")
    add("--json", action="store_true", help="print the plan as JSON")
    return parser


def _setting(options: argparse.Namespace, config: dict[str, Any]) -> Any:
    from v1lit.backbones.adapters.config import AdapterConfig
    from v1lit.backbones.adapters.folder import resolved
    from v1lit.backbones.config import BackboneConfig
    from v1lit.plan.setting import Setting, strategy_of
    from v1lit.pointer.config import PointerConfig
    from v1lit.revisit.config import RevisitConfig
    from v1lit.training.config import OptimizerConfig

    trainer, data, model = config["trainer"], config["data"], config["model"]
    nodes = options.nodes or trainer["num_nodes"]
    gpus = options.gpus_per_node or _devices(trainer["devices"])
    tokens = options.tokens or data["encoding"]["max_tokens"]
    length = data["packing"]["length"]
    made_of = resolved(BackboneConfig(**model["backbone"]), AdapterConfig(**model["adapter"]))
    return Setting(
        backbone=made_of[0],
        adapter=made_of[1],
        pointer=PointerConfig(**model["pointer"]),
        revisit=RevisitConfig(**model["revisit"]),
        optimizer=OptimizerConfig(**model["optimizer"]),
        **strategy_of(trainer, nodes, gpus),
        precision=str(trainer["precision"] or "32-true"),
        accumulate=trainer["accumulate_grad_batches"],
        nodes=nodes,
        gpus=gpus,
        examples=max(1, length // tokens) if length else data["batch_size"],
        tokens=tokens,
        image=options.image or None,
        config=options.config,
        freeze=tuple(model["freeze"]),
    )


def _devices(devices: object) -> int:
    if isinstance(devices, int) and devices > 0:
        return devices
    if isinstance(devices, list):
        return len(devices)
    raise UserError(f"trainer.devices is {devices!r}, which says no number\ngive --gpus-per-node N")


def _cluster(options: argparse.Namespace, config: dict[str, Any]) -> Any:
    import torch

    from v1lit.plan.speed import GIGA, Cluster
    from v1lit.training.peak import TERA, product_kind, published_tflops

    precision = str(config["trainer"]["precision"] or "32-true")
    kind = product_kind(precision, torch.float32, torch.device("cpu"))
    peak = options.peak_tflops or published_tflops(options.gpu, kind)
    if peak is None:
        raise UserError(
            f"--gpu={options.gpu}: no peak in {kind} is known for a GPU of this name\n"
            "give --peak-tflops N, or a name as torch.cuda.get_device_name says it"
        )
    inside, between = options.link
    return Cluster(peak * TERA, options.mfu, inside * GIGA, between * GIGA)


def _rows(options: argparse.Namespace, cli: Any, setting: Any) -> tuple[Any, str]:
    """The rows of the recipe's data, or None and why they are not known."""
    from v1lit.plan.architecture import model_config
    from v1lit.plan.rows import LengthsUnknown, rows_of
    from v1lit.training.flops import window_of

    if options.tokens:
        return None, "--tokens is given"
    try:
        window = window_of(model_config(setting.backbone, setting.config).get_text_config())
        return rows_of(cli.model_and_data()[1], setting.micro_batches, window), ""
    except LengthsUnknown as error:
        return None, str(error)


def _steps(options: argparse.Namespace, config: dict[str, Any], setting: Any, rows: Any) -> int | None:
    """Optimizer steps of the whole run, where that is known."""
    trainer = config["trainer"]
    limits = [trainer["max_steps"]] if trainer["max_steps"] > 0 else []
    if options.examples and trainer["max_epochs"]:
        in_a_step = setting.micro_batches * (rows or setting).examples
        limits.append(math.ceil(options.examples * trainer["max_epochs"] / in_a_step))
    elif rows and trainer["max_epochs"]:
        limits.append(rows.steps * trainer["max_epochs"])
    return min(limits) if limits else None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; give 1 or more")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return number


def _share(text: str) -> float:
    number = _positive(text)
    if number >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; give a number between 0 and 1")
    return number


def _links(text: str) -> tuple[float, float]:
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers in GB/s, such as 450,50")
    return _positive(parts[0]), _positive(parts[1])


def _image(text: str) -> tuple[int, int] | None:
    if text == "none":
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or not (int(match[1]) and int(match[2])):
        raise argparse.ArgumentTypeError(f"{text!r} is no size in pixels such as 672x504, nor none")
    return int(match[1]), int(match[2])


# ---- tables ------------------------------------------------------------------------------------------------


def _show(report: dict[str, Any], console: Console) -> None:
    """Print a plan."""
    batch, speed = report["micro_batch"], report["speed"]
    world = report["nodes"] * report["gpus_per_node"]
    inner = "".join(f", {name} {report[name]}" for name in ("tensor", "context") if report[name] > 1)
    console.print(
        f"{report['backbone']}, {report['strategy']}{inner}, {report['precision']}, {report['nodes']} x "
        f"{report['gpus_per_node']} GPUs; micro-batches of {batch['examples']} examples, {batch['tokens']:,} "
        f"tokens ({batch['image_tokens']:,} of images), {batch['accumulate']} accumulated"
    )
    console.print(_parameters(report))
    console.print(_memory(report))
    for line in _verdict(report):
        console.print(line)
    console.print(_speed(speed, world))
    console.print(_lengths(report["lengths"]))
    console.print(assumed(report["assumed"]))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _parameters(report: dict[str, Any]) -> Table:
    table = _table(
        "what is kept, GB of a GPU", "part", "millions", "learned", "weights", "gradients", "moments"
    )
    for part, size in report["parameters"].items():
        kept = [f"{value / GB:,.2f}" for value in report["parts"][part].values()]
        table.add_row(part, f"{size['all'] / 1e6:,.1f}", f"{size['learned'] / 1e6:,.1f}", *kept)
    sizes, kept = report["parameters"].values(), report["parts"].values()
    numbers = [f"{sum(size[name] for size in sizes) / 1e6:,.1f}" for name in ("all", "learned")]
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


def _lengths(lengths: dict[str, Any]) -> str:
    """Where the tokens of a step are from."""
    if lengths["from"] == "assumption":
        return f"tokens of a step: assumed, all examples being as long as the longest ({lengths['why']})"
    fill = "" if lengths["fill"] is None else f", {lengths['fill']:.1%} of a row"
    about = "" if lengths["steps_counted"] else "about "
    return (
        f"tokens of a step: by the tables of lengths of the recipe's data; an example has "
        f"{lengths['tokens_of_an_example']:,.0f} tokens on average "
        f"({lengths['image_tokens_of_an_example']:,.0f} of images), a micro-batch "
        f"{lengths['tokens_of_a_micro_batch']:,.0f}{fill}, and an epoch {lengths['examples_of_an_epoch']:,} "
        f"examples in {about}{lengths['steps_of_an_epoch']:,} steps; memory is that of the longest"
    )
