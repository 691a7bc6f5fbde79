"""A job of SLURM: a script for `sbatch` that starts a launcher per node, and is queued again when stopped.

SLURM sends `--signal` to the tasks of `srun`, which are the launchers, and not to the processes below them
(unless cgroup.conf has SignalChildrenProcesses); so it is the launcher that hands it to the ranks.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from v1lit.errors import OptionError
from v1lit.launch.job import Job, check_number, check_text, check_word, check_words

TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}")
"""Minutes, minutes:seconds, hours:minutes:seconds, days-hours, with minutes and seconds after it."""
DIRECTIVE = re.compile(r"--[a-z][a-z-]*(=[A-Za-z0-9_.,:+@%=/\[\]&|*-]+)?")
GPUS = re.compile(r"([A-Za-z0-9_.-]+:)?\d+")
STOPPED = 143
"""Exit code of a launcher whose ranks were told to stop by a signal, and left a checkpoint."""


@dataclass(frozen=True)
class Slurm:
    """Where and how a cluster runs the job; what is None is left to its defaults."""

    partition: str | None = None
    """`--partition`."""
    account: str | None = None
    """`--account`."""
    qos: str | None = None
    """`--qos`."""
    time: str | None = None
    """`--time`."""
    gpus: str | None = None
    """`--gpus-per-node`, with or without a type in front, `a100:8`."""
    cpus: int | None = None
    """`--cpus-per-task`: of all ranks of a node together."""
    memory: str | None = None
    """`--mem`: of a node."""
    directives: tuple[str, ...] = ()
    """Further options of sbatch, `--exclusive` or `--constraint=hbm`."""
    warning: int = 300
    """Seconds before the time limit when the run is told to save and stop."""
    logs: str = "logs"
    """Folder for what is printed; it must exist."""
    image: str | None = None
    """Container image, for clusters with pyxis."""
    mounts: str | None = None
    """Folders to see in the container, `/data:/data`, with commas between."""
    modules: tuple[str, ...] = ()
    """Environment modules to load."""
    setup: tuple[str, ...] = ()
    """Lines of the shell before the run starts, such as `source env/bin/activate`."""

    def __post_init__(self) -> None:
        for flag, text in (
            ("--partition", self.partition), ("--account", self.account), ("--qos", self.qos),
            ("--memory", self.memory), ("--logs", self.logs.lstrip("/") or None),
        ):  # fmt: skip
            check_word(flag, text)
        check_words("--module", self.modules)
        for flag, texts in (("--image", [self.image]), ("--mounts", [self.mounts]), ("--setup", self.setup)):
            for text in texts:
                check_text(flag, text or "")
        check_number("--cpus-per-task", self.cpus, 1)
        check_number("--warning", self.warning, 1, 65535)
        if self.time is not None and not TIME.fullmatch(self.time):
            raise OptionError(
                "--time", self.time, "give hours:minutes:seconds, or days-hours:minutes:seconds"
            )
        if self.gpus is not None and not GPUS.fullmatch(self.gpus):
            raise OptionError("--gpus-per-node", self.gpus, "give a number, or TYPE:NUMBER")
        for directive in self.directives:
            if not DIRECTIVE.fullmatch(directive):
                why = "give an option of sbatch, --NAME or --NAME=VALUE, without spaces and quotes"
                raise OptionError("--directive", directive, why)


def script(job: Job, slurm: Slurm) -> str:
    """The script of a job, for `sbatch`."""
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {directive}" for directive in _directives(job, slurm)),
        "",
        "# shellcheck disable=SC2016  # a $ in a value is a $, and names no variable",
        "set -eo pipefail",
        *(f"module load {module}" for module in slurm.modules),
        *slurm.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in job.variables.items()),
        "",
        "# The nodes meet on the first one.",
        'mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        "code=0",
        call([*srun(slurm, job.is_elastic), "v1lit", *job.node_words()]) + " \\",
        '  --host="${hosts[0]}" --number-from=SLURM_NODEID --launch="slurm-$SLURM_JOB_ID" || code=$?',
        "",
        "# Stopped by a signal, with a checkpoint to resume from.",
        f'if [ "$code" -eq {STOPPED} ]; then',
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _directives(job: Job, slurm: Slurm) -> list[str]:
    least, most = job.nodes
    logs = slurm.logs.rstrip("/").replace("%", "%%")
    nodes = f"{least}-{most}" if job.is_elastic else f"{least}"
    named = directives(job.name, slurm, nodes, f"{logs}/%x-%j.out")
    return [*named, *(["--no-kill"] if job.is_elastic else []), *slurm.directives]


def directives(name: str, slurm: Slurm, nodes: str, output: str | None = None) -> list[str]:
    """Options of sbatch for a job of one task per node that is queued again, but for `slurm.directives`."""
    given = {
        "job-name": re.sub(r"[^A-Za-z0-9_.-]+", "_", name).lstrip("-.") or "v1lit",
        "nodes": nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": slurm.gpus,
        "cpus-per-task": slurm.cpus,
        "mem": slurm.memory,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "time": slurm.time,
        "signal": f"USR1@{slurm.warning}",
        "output": output,
        "open-mode": "append",
    }
    named = [f"--{option}={value}" for option, value in given.items() if value is not None]
    return [*named, "--requeue"]


def srun(slurm: Slurm, is_elastic: bool = False) -> list[str]:
    """One task per node; a node that fails ends the others, unless they can do without it."""
    given = {
        "ntasks-per-node": 1,
        "cpus-per-task": slurm.cpus,
        "kill-on-bad-exit": int(not is_elastic),
        "container-image": slurm.image,
        "container-mounts": slurm.mounts,
    }
    named = [f"--{option}={value}" for option, value in given.items() if value is not None]
    return ["srun", *named, *(["--no-kill"] if is_elastic else [])]


def call(words: list[str]) -> str:
    """A command of the shell in which every word is itself, one option per line."""
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--") or word == "v1lit":
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return " \\\n  ".join(" ".join(line) for line in lines)
