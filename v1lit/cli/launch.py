"""`v1lit launch`: job files for clusters, and the same on one machine."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from v1lit.cli.errors import Parser, RunFailed, UserError, a_path
from v1lit.cli.recipe import compose, read_changes, shipped_recipes, stages_of
from v1lit.cli.stage_entries import STAGE
from v1lit.errors import OptionError, did_you_mean
from v1lit.launch.job import Job

CPP_LEVEL = "TORCH_CPP_LOG_LEVEL"
"""Which messages of torch's C++ code are shown."""
KINDS = ("slurm", "k8s", "local", "node")
USAGE = """usage: v1lit launch slurm RECIPE --nodes N --gpus-per-node N ... [--key=value ...]   a job of SLURM
       v1lit launch k8s RECIPE --nodes N --gpus-per-node N --image IMAGE ...   a JobSet of Kubernetes
       v1lit launch local RECIPE --nodes N --procs N ...    several nodes on this machine
       v1lit launch node RECIPE ...                         what all of these run on every node

Each runs `lightning run RECIPE --key=value ...` once per device, and again when a rank dies.
v1lit launch KIND --help says more.
"""


def main(argv: Sequence[str]) -> int:
    """Run `v1lit launch` with the arguments after `launch`; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if argv else 2
    kind, *rest = argv
    if kind not in KINDS:
        raise UserError(
            f"v1lit launch has no {kind!r}{did_you_mean(kind, KINDS)}\nallowed: {', '.join(KINDS)}"
        )
    code: int = {"slurm": _slurm, "k8s": _k8s, "local": _local, "node": _node}[kind](rest)
    return code


# ---------------------------------------------------------------------- what each launches


def _slurm(argv: Sequence[str]) -> int:
    from v1lit.cli.slurm_options import add_slurm, slurm_of
    from v1lit.launch.slurm import script

    parser = _parser("slurm", "Print a script for sbatch, or submit it.")
    _add_job(parser, per_node="--gpus-per-node", nodes="number of nodes, or MIN:MAX")
    add_slurm(parser.add_argument)
    parser.add_argument("--logs", type=a_path, default="logs", help="folder for what the job prints")
    parser.add_argument(
        "--submit", action="store_true", help="hand the script to sbatch instead of printing it"
    )
    options, job = _read(parser, argv)
    slurm = slurm_of(options, gpus=options.per_node, logs=options.logs)
    if not options.submit:
        print(script(job, slurm), end="")
        return 0
    Path(slurm.logs).mkdir(parents=True, exist_ok=True)  # else SLURM fails the job without a word
    return _hand_to(["sbatch"], script(job, slurm))


def _k8s(argv: Sequence[str]) -> int:
    from v1lit.launch.k8s import Kubernetes, manifest

    parser = _parser("k8s", "Print the manifest of a JobSet, or apply it.")
    _add_job(parser, per_node="--gpus-per-node", nodes="number of nodes")
    parser.add_argument("--image", required=True, help="container image with v1lit in it")
    for flag, name, what in (
        ("--namespace", "namespace", "of the JobSet"),
        ("--queue", "queue", "local queue of Kueue"),
        ("--priority-class", "priority", "of the pods"),
        ("--service-account", "account", "of the pods"),
        ("--cpus", "cpus", "cores of a pod"),
        ("--memory", "memory", "memory of a pod, such as 900Gi"),
    ):
        parser.add_argument(flag, dest=name, help=what)
    parser.add_argument("--shared-memory", default="32Gi", help="size of /dev/shm")
    parser.add_argument("--gpu-resource", default="nvidia.com/gpu", help="what the cluster calls a GPU")
    parser.add_argument("--time", type=int, help="time limit, seconds")
    parser.add_argument("--grace", type=int, default=300, help="seconds for a checkpoint after SIGTERM")
    _add_many(parser, "--claim", "claims", "persistent volume claim and where it is seen, CLAIM:/PATH")
    _add_many(parser, "--node-selector", "selectors", "label that nodes must have, LABEL=VALUE")
    _add_many(parser, "--setup", "setup", "line of the shell before the run")
    parser.add_argument(
        "--submit", action="store_true", help="hand it to kubectl apply instead of printing it"
    )
    options, job = _read(parser, argv, here=False)
    names = ("image", "namespace", "queue", "priority", "account", "time", "cpus", "memory", "grace")
    kubernetes = Kubernetes(
        **{name: getattr(options, name) for name in (*names, "shared_memory", "gpu_resource")},
        gpus=job.procs,
        setup=tuple(options.setup),
        claims=_pairs("--claim", options.claims, ":"),
        selectors=_pairs("--node-selector", options.selectors),
    )
    text = manifest(job, kubernetes)
    if not options.submit:
        print(text, end="")
        return 0
    return _hand_to(["kubectl", "apply", "-f", "-"], text)


def _local(argv: Sequence[str]) -> int:
    from v1lit.launch.local import HOST, free_port, run_local, this_python

    parser = _parser("local", "Start nodes of a job on this machine, and wait for them.")
    _add_job(parser, per_node="--procs", nodes="number of nodes, or MIN:MAX", port=0)
    _, job = _read(parser, argv, port=free_port)
    os.environ.update(job.variables)

    def run(job: Job) -> int:
        launch = f"local-{os.getpid()}-{time.time_ns()}"

        def command(number: int) -> list[str]:
            found = [f"--host={HOST}", f"--number={number}", f"--launch={launch}"]
            return this_python([*job.node_words(), *found])

        return run_local(*job.nodes, command)

    if stages := stages_of(job.recipe, job.change_words()):
        return _run_stages(job, stages, lambda one, _: run(replace(one, port=free_port())))
    return run(job)


def _run_stages(job: Job, names: Sequence[str], run: Callable[[Job, int], int]) -> int:
    """Call `run` with the job of each stage that is not done yet, and the stage's number from 0 on.

    Returns the first exit code that is not 0.
    """
    from v1lit.cli.stage_recipes import stage_in, stage_of, whole_run
    from v1lit.cli.stages import folder_of_stages, followed, is_done

    first = stage_of(job.recipe, job.change_words(), names[0])
    folder_of_stages(whole_run(first), first)
    with followed():
        for number, name in enumerate(names):
            one = replace(job, changes={**job.changes, "run.resume": "auto", STAGE: name})
            recipe = stage_of(job.recipe, one.change_words(), name)
            if is_done(recipe, place := folder_of(one)):
                print(f"stage {stage_in(recipe).name} is done, in {place}", flush=True)
            elif code := run(one, number):
                return code
    return 0


def _node(argv: Sequence[str]) -> int:
    parser = _parser(
        "node", "Run the ranks of one node; every node of a job has the same --launch and --host."
    )
    _add_job(parser, per_node="--procs", nodes="number of nodes, or MIN:MAX")
    parser.add_argument("--host", required=True, help="name or address of the first node")
    parser.add_argument("--number", type=int, help="of this node, from 0 on")
    parser.add_argument("--number-from", metavar="NAME", help="variable of the environment with its number")
    parser.add_argument("--launch", help="name of this launch, that no other has")
    parser.add_argument("--launch-from", metavar="NAME", help="variable of the environment with that name")
    options, job = _read(parser, argv)
    number = options.number if options.number_from is None else _number_in(options.number_from)
    launch = options.launch or os.environ.get(options.launch_from or "") or job.name
    if number is None:
        raise UserError(
            "--number is missing: which node is this, from 0 on?\n--number-from=NAME takes a variable"
        )
    if stages := stages_of(job.recipe, job.change_words()):
        return _node_of_stages(job, stages, [f"--host={options.host}", f"--number={number}"], launch)
    level = os.environ.get(CPP_LEVEL)
    os.environ[CPP_LEVEL] = level or "ERROR"  # it warns, with a stack of C++, of what is told in words here
    from v1lit.launch.node import Node, run_node  # torch, which reads that once: only where it is needed

    if level is None:
        del os.environ[CPP_LEVEL]  # not for the ranks
    from v1lit.processes import end_with_launcher
    from v1lit.training import attempts

    end_with_launcher()
    os.environ.update({**job.variables, attempts.LAUNCH: launch, attempts.MOST: str(job.max_failures)})
    folder = folder_of(job)
    node = Node(
        *job.nodes, job.procs, options.host, job.port, number, launch, job.max_restarts, job.join_timeout
    )
    run = [sys.executable, "-m", "v1lit.cli.lightning", "run", job.recipe, *job.change_words()]
    return run_node(
        node,
        [*run, f"--trainer.devices={job.procs}"],
        lambda rank, reason: attempts.note_failure(folder, rank, reason),
    )


def _node_of_stages(job: Job, names: Sequence[str], found: Sequence[str], launch: str) -> int:
    """Run one stage after another on this node, each as a launch of its own with a port of its own."""
    from v1lit.launch.local import run_local, this_python
    from v1lit.processes import end_with_launcher

    end_with_launcher()

    def run(one: Job, number: int) -> int:
        one = replace(one, port=job.port + number)
        words = [*one.node_words(), *found, f"--launch={launch}-{names[number]}"]
        return run_local(1, 1, lambda _: this_python(words))

    return _run_stages(job, names, run)


def folder_of(job: Job) -> Path:
    """The folder of the run that a job trains, without its Trainer and its model."""
    from v1lit.training.config import RunConfig

    recipe = compose(job.recipe, job.change_words())
    config = recipe.config.get("run") or {}
    # As it was typed: YAML takes some names for numbers.
    folder = job.changes.get("run.folder") or config.get("folder") or RunConfig.folder
    place = Path(RunConfig(folder=str(folder)).folder) / job.name
    return place if recipe.stage is None else place / recipe.stage.folder


# ---------------------------------------------------------------------- how it is told


def _parser(kind: str, what: str) -> Parser:
    return Parser(
        prog=f"v1lit launch {kind}",
        usage=f"v1lit launch {kind} RECIPE [option ...] [--key=value ...] [--debug]",
        description=what,
        epilog="--key=value changes a key of the recipe, as in `v1lit run`; without it run.name is recipe "
        "and time; run.resume is auto.",
    )


def _add_job(parser: Parser, per_node: str, nodes: str, port: int = 29500) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("--nodes", type=_nodes, required=True, metavar="N", help=nodes)
    devices = "GPUs, and so ranks, of each node" if "gpus" in per_node else "ranks of each node"
    parser.add_argument(per_node, dest="per_node", required=True, metavar="N", help=devices)
    parser.add_argument("--port", type=int, default=port, help="on the first node, where the others meet it")
    parser.add_argument("--max-restarts", type=int, default=100, help="how often ranks are started again")
    parser.add_argument("--max-failures", type=int, default=3, help="starts from the same step that may fail")
    parser.add_argument("--join-timeout", type=int, default=600, help="seconds to wait for missing nodes")
    parser.add_argument("--interface", help="network interface for what ranks send each other")
    _add_many(parser, "--env", "env", "variable of the environment, NAME=VALUE")


def _add_many(parser: Parser, flag: str, name: str, what: str) -> None:
    parser.add_argument(flag, dest=name, action="append", default=[], help=f"{what}; may be given again")


def _read(
    parser: Parser, argv: Sequence[str], here: bool = True, port: Any = None
) -> tuple[argparse.Namespace, Job]:
    """The options, and what of them is said of every job; `here` has the recipe read on this machine."""
    options, changes = parser.read_with_changes(argv)
    unknown = [word for word in changes if word.startswith("-") and "." not in word.partition("=")[0]]
    parser.refuse(unknown)
    keys = dict(read_changes(changes))
    stem, said = Path(options.recipe).stem, keys
    if here or options.recipe in shipped_recipes() or Path(options.recipe).is_file():
        first = [f"--{STAGE}={name}" for name in stages_of(options.recipe, changes)[:1]]
        recipe = compose(options.recipe, [*changes, *first])
        stem, run = recipe.name, recipe.config.get("run") or {}
        said = {f"run.{key}": str(value) for key, value in run.items() if value is not None}
    if said.get("run.resume", "auto") not in ("auto", "last"):
        why = "a launched run resumes from its own newest checkpoint at every start: leave it out"
        raise OptionError("run.resume", said["run.resume"], why)
    name = keys.get("run.name") or said.get("run.name") or f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    job = Job(
        recipe=options.recipe,
        changes=keys,
        name=name,
        nodes=options.nodes,
        procs=_count(options.per_node, "--gpus-per-node" if "gpus" in parser.format_help() else "--procs"),
        port=options.port or (port() if port else 0),
        max_restarts=options.max_restarts,
        max_failures=options.max_failures,
        join_timeout=options.join_timeout,
        environment=_pairs("--env", options.env),
        interface=options.interface,
    )
    return options, job


def _nodes(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of nodes; give N, or MIN:MAX")
    return int(match[1]), int(match[2] or match[1])


def _count(text: str, flag: str) -> int:
    """The number of `8` or `a100:8`."""
    number = text.rpartition(":")[2]
    if not number.isascii() or not number.isdecimal() or int(number) < 1:
        raise OptionError(flag, text, "give a number from 1 on")
    return int(number)


def _pairs(flag: str, texts: Iterable[str], between: str = "=") -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition(between)
        if not separator or not name:
            raise OptionError(flag, text, f"give NAME{between}VALUE")
        pairs[name] = value
    return pairs


def _number_in(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isascii() or not value.isdecimal():
        raise OptionError("--number-from", name, f"the environment has {value!r} there, and no number")
    return int(value)


def _hand_to(command: list[str], text: str) -> int:
    """Give a job to the program that takes it."""
    if shutil.which(command[0]) is None:
        raise UserError(f"--submit needs {command[0]}, which is not here\nwithout it the job is printed")
    done = subprocess.run(command, input=text, text=True, check=False)
    if done.returncode:
        raise RunFailed(f"{command[0]} refused the job with exit code {done.returncode}")
    return 0
