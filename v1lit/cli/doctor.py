"""`v1lit doctor`: what is installed, on which devices, and who owns the `lightning` command."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from v1lit.cli.environment import versions
from v1lit.cli.errors import Parser, UserError
from v1lit.cli.tried_versions import remarks, runs
from v1lit.processes import available_cores

EXTRAS = {
    "wandb": "logging to Weights & Biases (trainer.logger)",
    "adamw8bit": "model.optimizer.name=adamw8bit: AdamW's moments in 8 bits",
    "xformers": "model.backbone.attention=xformers on NVIDIA GPUs with CUDA 12",
    "s3": "shards on s3:// (Amazon S3 and servers that speak its protocol)",
    "gs": "shards on gs:// (Google Cloud Storage)",
    "az": "shards on az:// (Azure Blob Storage)",
    "adapters": "LoRA, DoRA and QLoRA (model.adapter)",
    "timm": "vision towers of the backbone timm_lm, and `v1lit assemble`",
    "serve": "v1lit serve: a server that OpenAI's clients can ask",
    "demo": "v1lit demo: a page in the browser to ask a model on",
    "fla": "packed rows of linear attention (qwen3_5) on NVIDIA GPUs",
    "flash-attn": "model.backbone.attention=flash_attention_2 on NVIDIA GPUs",
    "sdk": "Lightning AI studios and jobs: the other commands of `lightning`",
    "deepspeed": "trainer.strategy=deepspeed_zero3: DeepSpeed's ZeRO-3",
    "report": "tables and figures of `v1lit sweep report`",
    "ray": "v1lit sweep --executor=ray: trials on a Ray cluster",
    "docs": "building the documentation",
    "dev": "tests, linter, type checker: working on v1lit itself",
}
"""What each extra of pyproject.toml is for; a test keeps the two in step."""


def main(argv: Sequence[str]) -> int:
    """Run `v1lit doctor`; returns the exit code."""
    about = (
        "Versions, devices, which `lightning` comes first on the path, and optional extras that are missing."
    )
    parser = Parser(prog="v1lit doctor", description=about)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--packing",
        metavar="RECIPE",
        help="show instead that examples packed into one row give this recipe's model the same losses and "
        "gradients as each alone; --key=value changes the recipe as in `v1lit run`",
    )
    instead.add_argument(
        "--self-test",
        action="store_true",
        help="try instead, in less than a minute, what v1lit does: every family trains three steps, is saved "
        "and opened, generates and packs, each compared with another way to compute the same",
    )
    instead.add_argument(
        "--cluster",
        metavar="RECIPE",
        nargs="?",
        const="",
        help="started on all ranks by torchrun or srun, check instead what a run on them checks before it "
        "begins: who is there, same versions, recipe and shards, clocks, disk, the network between them",
    )
    parser.add_argument("--wait", type=float, default=300.0, help="seconds to wait for ranks, with --cluster")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), help="where --self-test runs")
    options, changes = parser.read_with_changes(argv)
    if options.packing:
        from v1lit.cli.doctor_packing import check_recipe  # torch and Lightning: only where they are needed

        return check_recipe(options.packing, changes)
    if options.cluster is not None:
        from v1lit.cli.doctor_cluster import check_cluster

        return check_cluster(options.cluster, changes, options.wait)
    if changes and "=" in changes[0]:
        raise UserError(f"{changes[0].partition('=')[0]} changes a recipe: name it with --packing RECIPE")
    parser.refuse(changes)
    if options.self_test:
        from v1lit.cli.self_test import run_self_test

        return run_self_test(options.device or "auto", options.debug)
    if options.device:
        raise UserError("--device says where --self-test runs: give that too")
    for title, lines in (
        ("versions", list(version_lines())),
        ("devices", list(devices())),
        ("the `lightning` command", list(lightning_commands(os.environ.get("PATH", os.defpath)))),
        ("optional extras", list(extras())),
    ):
        print(title)
        print("".join(f"  {line}\n" for line in lines), end="")
    return 0


def version_lines() -> Iterator[str]:
    """One line for every dependency: what is installed, and where that is newer or older than tested."""
    told = {name: (number, "") for name, number in versions().items()} | remarks()
    for name, (number, remark) in told.items():
        yield f"{name:<17}{number:<12}{remark}".rstrip()
    tested = [f"{name} ({run['date']})" for name, run in runs().items() if not run["failed"]]
    yield ""
    yield f"tested with: {', '.join(tested) or 'nothing that was recorded'}; docs/versions.md has the table"


def devices() -> Iterator[str]:
    """One line for every device that PyTorch can train on."""
    import torch

    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}  {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        yield "mps     Apple GPU"
    threads = torch.get_num_threads()
    yield f"cpu     {platform.machine()}, {available_cores()} cores, {threads} threads for PyTorch"
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        yield "no GPU  train the tiny recipes here"


def lightning_commands(path: str) -> Iterator[str]:
    """Every `lightning` on `path` in order, with its owner; the first one is what runs."""
    found: list[Path] = []
    for folder in dict.fromkeys(path.split(os.pathsep)):
        script = shutil.which("lightning", path=folder) if folder else None
        if script and not any(Path(script).samefile(other) for other in found):
            found.append(Path(script))
    if not found:
        yield "none on the path; use `v1lit run`, or reinstall v1lit to get it back"
    for index, command in enumerate(found):
        yield f"{'first ' if index == 0 else 'hidden'}  {command}  belongs to {owner(command)}"
    if found and owner(found[0]) != "v1lit":
        yield "`lightning run RECIPE` would not reach v1lit; use `v1lit run RECIPE`"


def owner(script: Path) -> str:
    """The distribution that a console script starts: v1lit, lightning-sdk or another program."""
    text = script.read_bytes()[-100_000:].decode("utf-8", errors="ignore")
    for module, name in (("v1lit.cli.lightning", "v1lit"), ("lightning_sdk", "lightning-sdk")):
        if module in text:
            return name
    return "another program"


def extras(distribution: str = "v1lit") -> Iterator[str]:
    """One line per optional extra: present, or what is missing and what that is for."""
    try:
        declared = [Requirement(text) for text in requires(distribution) or []]
    except PackageNotFoundError:
        yield f"unknown: {distribution} is not installed, only imported"
        return
    for extra, purpose in EXTRAS.items():
        needed = [need for need in declared if _applies(need, extra) and not _applies(need, "")]
        missing = [need.name for need in needed if not _installed(need)]
        if needed:
            yield f"{extra:<12}{'present' if not missing else 'missing ' + ', '.join(missing)}  ({purpose})"
    yield f"install one with: pip install '{distribution}[NAME]'"


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _installed(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False
