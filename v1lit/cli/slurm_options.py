"""Options of the command line that say where and how SLURM runs a job."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from v1lit.launch.slurm import Slurm

TEXTS = {
    "--partition": "where the job runs",
    "--account": "who pays for it",
    "--qos": "quality of service",
    "--time": "time limit, such as 24:00:00 or 2-00:00:00",
    "--memory": "memory of a node, such as 900G",
    "--image": "container image (clusters with pyxis)",
    "--mounts": "folders to see in the container, /data:/data,/home:/home",
}
NAMES = ("partition", "account", "qos", "time", "cpus", "memory", "warning", "image", "mounts")
LISTS = ("modules", "setup", "directives")


def add_slurm(add: Callable[..., object]) -> None:
    """Add the options by `add_argument` of a parser or group; not given, one is None or an empty list."""
    for flag, what in TEXTS.items():
        add(flag, help=what)
    add("--cpus-per-task", dest="cpus", type=int, help="cores of a node, for all its ranks")
    add("--warning", type=int, help="seconds before the time limit to stop at; default 300")
    for flag, name, what in (
        ("--module", "modules", "environment module to load"),
        ("--setup", "setup", "line of the shell before the run, such as 'source env/bin/activate'"),
        ("--directive", "directives", "other option of sbatch, as --directive=--exclusive"),
    ):
        add(flag, dest=name, action="append", default=[], help=f"{what}; may be given again")


def slurm_of(options: argparse.Namespace, **more: Any) -> Slurm:
    """What the options say; raises OptionError for what cannot be used."""
    given: dict[str, Any] = {
        name: getattr(options, name) for name in NAMES if getattr(options, name) is not None
    }
    given |= {name: tuple(getattr(options, name)) for name in LISTS}
    return Slurm(**given, **more)


def given_options(options: argparse.Namespace) -> list[str]:
    """Flags of those that were given."""
    flags = {"cpus": "--cpus-per-task", "modules": "--module", "directives": "--directive"}
    return [flags.get(name, f"--{name}") for name in (*NAMES, *LISTS) if getattr(options, name)]
