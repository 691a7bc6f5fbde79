"""Options of `v1lit sweep` that say where trials run, and what they make."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from v1lit.cli.errors import Parser, UserError
from v1lit.cli.slurm_options import add_slurm, given_options, slurm_of
from v1lit.processes import available_cores
from v1lit.sweep.executor import Executor, ExecutorError
from v1lit.sweep.folder import SweepFolder
from v1lit.sweep.local import Local, jobs_by_default, visible_gpus

if TYPE_CHECKING:
    from v1lit.cli.sweep_check import Checked

EXECUTORS = ("local", "slurm", "ray")
"""Where trials can run, as `--executor` names it."""
SECONDS_TO_GROW = 60
WAIT = f"seconds for the cluster to get a node that can hold a trial; default {SECONDS_TO_GROW}"
JOBS = "jobs"
"""Folder of the sweep's with what is known of jobs of SLURM."""


def add_executors(parser: Parser) -> None:
    """Add `--executor` and the options of each."""
    add = parser.add_argument
    add("--executor", choices=EXECUTORS, default="local", help="where trials run; default on this machine")
    add("--jobs", type=count, help="trials at a time; default one per core, or what the GPUs are enough "
        "for; on a cluster all")  # fmt: skip
    add("--threads", type=count, help="OMP_NUM_THREADS of a trial; default its share of the cores, on Ray 1")
    add("--gpus-per-trial", type=_gpus, help="such as 0.5: two trials share a GPU; default its devices")
    add = parser.add_argument_group("with --executor=ray").add_argument
    add("--address", help="of the cluster, HOST:PORT; default RAY_ADDRESS, or the cluster of this machine")
    add("--wait", type=count, help=WAIT)
    add_slurm(parser.add_argument_group("with --executor=slurm").add_argument)


def runs_elsewhere(options: argparse.Namespace) -> bool:
    """Whether trials run on other machines than this one."""
    return bool(options.executor != "local")


def executor_of(
    options: argparse.Namespace, sweep: str, folder: SweepFolder, checked: Sequence[Checked]
) -> Executor:
    """What runs the trials of a sweep, as the options say.

    Args:
        options: as `add_executors` has them read.
        sweep: its name.
        folder: of the sweep.
        checked: its trials.
    """
    refuse_others(options, folder)
    on_gpu, devices = any(one.on_gpu for one in checked), max(one.devices for one in checked)
    if options.executor == "slurm":
        from v1lit.sweep.slurm import SlurmJobs

        gpus = options.gpus_per_trial or devices * on_gpu
        if gpus != int(gpus):
            raise UserError("--gpus-per-trial is a share, and SLURM deals out whole GPUs\ngive 1 or more")
        slurm = slurm_of(options, gpus=str(int(gpus)) if gpus else None)
        return SlurmJobs(folder.path / JOBS, sweep, slurm, options.jobs or len(checked))
    if options.executor == "ray":
        return _ray(options, folder, len(checked), options.gpus_per_trial or devices * on_gpu, devices)
    names = visible_gpus() if on_gpu else []
    each = options.gpus_per_trial or float(devices)
    jobs = options.jobs or min(len(checked), jobs_by_default(names, each if names else devices))
    threads = options.threads or max(1, available_cores() // (jobs * devices))
    return Local(jobs, names, each, threads)


def _ray(
    options: argparse.Namespace, folder: SweepFolder, trials: int, gpus: float, devices: int
) -> Executor:
    from v1lit.sweep.ray_tasks import RayTasks

    address, threads = options.address or os.environ.get("RAY_ADDRESS") or "auto", options.threads or 1
    if address != "auto" and not re.fullmatch(r"[^/]+:\d+", address):
        raise UserError(
            f"--address is {address!r}; give HOST:PORT of a Ray cluster, or auto for the one here"
        )
    jobs, wait = options.jobs or trials, options.wait or SECONDS_TO_GROW
    tasks = RayTasks(folder.path, address, jobs, threads * devices, gpus, threads, wait)
    if not options.dry_run:
        try:
            tasks.connect()
        except ExecutorError as error:
            raise UserError(str(error)) from error
    return tasks


def refuse_others(options: argparse.Namespace, folder: SweepFolder) -> None:
    """Raise UserError for options of another executor, and where another one may still run trials."""
    from v1lit.sweep.slurm import has_jobs

    if options.executor != "ray" and (options.address or options.wait):
        flag = "--address" if options.address else "--wait"
        raise UserError(f"{flag} says something of a Ray cluster\ngive --executor=ray as well")
    if options.executor == "slurm":
        if options.threads:
            raise UserError("--threads goes with other executors; for SLURM give --cpus-per-task=N")
        return
    if given := given_options(options):
        raise UserError(f"{given[0]} says how SLURM runs a job\ngive --executor=slurm as well")
    if has_jobs(folder.path / JOBS) and not options.dry_run:
        raise UserError(
            f"jobs of SLURM may still run trials of {folder.path}\n"
            "resume with --executor=slurm, whose Ctrl-C stops them; or, if they are all gone, remove "
            f"{folder.path / JOBS}"
        )


def count(text: str) -> int:
    """A number from 1 on, as an option of the command line has it."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; give 1 or more")
    return int(text)


def _gpus(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not (0 < share < 1 or (share >= 1 and share == int(share))):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of GPUs; give 1, 2, ..., or a share such as 0.5"
        )
    return share
