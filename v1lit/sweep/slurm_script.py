"""The script of a trial that is a job of SLURM, and the files by which it says how it ended."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from v1lit.launch.slurm import STOPPED, Slurm, call, directives, srun
from v1lit.sweep.executor import Job


@dataclass(frozen=True)
class Files:
    """What driver and job of one trial tell each other."""

    folder: Path
    """Of all jobs of the sweep; absolute."""
    trial: str

    @property
    def script(self) -> Path:
        """What `sbatch` was given."""
        return self._named("sh")

    @property
    def turn(self) -> Path:
        """Names the start that counts; a job of another one ends at once, and has done nothing."""
        return self._named("turn")

    @property
    def number(self) -> Path:
        """Number of the job, as long as no driver has noted its end."""
        return self._named("job")

    @property
    def ended(self) -> Path:
        """Start and exit code, once the job has come to its end."""
        return self._named("ended")

    @property
    def stop(self) -> Path:
        """There while the job is not to be queued again."""
        return self._named("stop")

    def _named(self, suffix: str) -> Path:
        return self.folder / f"{self.trial}.{suffix}"


def trial_script(job: Job, files: Files, turn: str, slurm: Slurm, sweep: str) -> str:
    """The script of a job on one node that runs a trial, for `sbatch`.

    Signals of SLURM reach the trial, which is the task of `srun`; a trial that they stopped is queued again.

    Args:
        job: what is run.
        files: of the trial.
        turn: name of this start.
        slurm: where and how the cluster runs it.
        sweep: name of the sweep.
    """
    # The trial is one process, whatever SLURM says of tasks; it starts its other ranks by itself.
    command = ["env", "SLURM_JOB_NAME=interactive", *job.command]
    part = f"{files.ended}.part"
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {line}" for line in _directives(job, slurm, sweep)),
        "",
        "# shellcheck disable=SC2016  # a $ in a value is a $, and names no variable",
        "set -eo pipefail",
        "# The driver has started the trial again since, and knows nothing of this job.",
        f'if [ "$(cat {_quoted(files.turn)})" != {turn} ]; then',
        "  exit 0",
        "fi",
        f'echo "$SLURM_JOB_ID" > {_quoted(files.number)}',
        f"rm -f {_quoted(files.ended)}",
        *(f"module load {module}" for module in slurm.modules),
        *slurm.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in job.variables.items()),
        f"code={STOPPED}",
        f"if [ ! -e {_quoted(files.stop)} ]; then",
        "  code=0",
        call([*srun(slurm), *command]) + " || code=$?",
        "fi",
        "",
        "# Stopped by a signal of SLURM, with a checkpoint to resume from.",
        f'if [ "$code" -eq {STOPPED} ] && [ ! -e {_quoted(files.stop)} ] &&',
        '  scontrol requeue "$SLURM_JOB_ID"; then',
        '  exit "$code"',
        "fi",
        f'echo {turn} "$code" > {_quoted(part)}',
        f"mv {_quoted(part)} {_quoted(files.ended)}",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _directives(job: Job, slurm: Slurm, sweep: str) -> Sequence[str]:
    return [*directives(f"{sweep}-{job.name}", slurm, "1"), *slurm.directives]


def _quoted(path: Path | str) -> str:
    return shlex.quote(str(path))
