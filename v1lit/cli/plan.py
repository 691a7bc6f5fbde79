"""`v1lit plan RECIPE`: whether it fits into the GPUs' memory, how fast it would be, and what to change."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import Any

from v1lit.cli.errors import Parser, UserError, a_path
from v1lit.cli.recipe import compose

ABOUT = "Plan a run without GPUs and without weights: parameters, memory of a GPU, time, and what to change."
MORE = "--key=value changes the recipe as in `v1lit run`."
SCALED = (8, 16, 32, 64, 128, 256, 512, 1024)
GPU = "H100 80GB HBM3"


def main(argv: Sequence[str]) -> int:
    """Run `v1lit plan`; returns 0 if it fits, 1 if not."""
    options, changes = _parser().read_with_changes(argv)
    recipe = compose(options.recipe, changes)
    from v1lit.cli.plan_tables import show, show_scale
    from v1lit.cli.recipe_cli import RecipeCLI
    from v1lit.console import screen
    from v1lit.plan.report import make_report, scaled
    from v1lit.training.quiet import quiet

    with quiet(), recipe.options():
        config = RecipeCLI(recipe, parse_only=True).config.as_dict()
        setting, cluster = _setting(options, config), _cluster(options, config)
        limit = options.gpu_memory * (1 - options.reserve) * 1e9
        if options.scale:
            rows = scaled(setting, cluster, SCALED)
        else:
            report = make_report(setting, cluster, limit, _steps(options, config, setting))
    if options.scale:
        print(json.dumps(rows, indent=1)) if options.json else show_scale(rows, setting, cluster, screen())
        return 0
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        show(report, screen())
    return 0 if report["fits"] else 1


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
    add(
        "--mfu",
        type=_share,
        default=0.4,
        help="share of the peak that is reached while computing; default 0.4",
    )
    add("--link", type=_links, default=(450.0, 50.0), metavar="INSIDE,BETWEEN",
        help="GB/s into a GPU inside a node, and from other nodes; default 450,50")  # fmt: skip
    add("--image", type=_image, default=(672, 504), metavar="WxH",
        help="pixels of the one image of an example, or none; default 672x504")  # fmt: skip
    add(
        "--tokens",
        type=_count,
        help="tokens of an example; the recipe's data.encoding.max_tokens when not given",
    )
    add("--examples", type=_count, help="training examples of an epoch, for the hours of the whole run")
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
    from v1lit.backbones.config import BackboneConfig
    from v1lit.plan.setting import Setting, strategy_of
    from v1lit.pointer.config import PointerConfig
    from v1lit.training.config import OptimizerConfig

    trainer, data, model = config["trainer"], config["data"], config["model"]
    nodes = options.nodes or trainer["num_nodes"]
    gpus = options.gpus_per_node or _devices(trainer["devices"])
    strategy, shard, every = strategy_of(trainer, nodes * gpus)
    tokens = options.tokens or data["encoding"]["max_tokens"]
    length = data["packing"]["length"]
    return Setting(
        backbone=BackboneConfig(**model["backbone"]),
        pointer=PointerConfig(**model["pointer"]),
        optimizer=OptimizerConfig(**model["optimizer"]),
        strategy=strategy,
        precision=str(trainer["precision"] or "32-true"),
        accumulate=trainer["accumulate_grad_batches"],
        nodes=nodes,
        gpus=gpus,
        examples=max(1, length // tokens) if length else data["batch_size"],
        tokens=tokens,
        image=options.image or None,
        shard=shard,
        reduce_every=every,
        config=options.config,
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


def _steps(options: argparse.Namespace, config: dict[str, Any], setting: Any) -> int | None:
    """Optimizer steps of the whole run, where that is known."""
    trainer = config["trainer"]
    limits = [trainer["max_steps"]] if trainer["max_steps"] > 0 else []
    if options.examples and trainer["max_epochs"]:
        limits.append(-(-options.examples * trainer["max_epochs"] // setting.examples_per_step))
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
