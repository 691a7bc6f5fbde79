"""What is said when a run was stopped: which checkpoint there is, and the command to resume."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from v1lit.cli.recipe import read_changes
from v1lit.cli.run_folder import is_first, is_helper
from v1lit.cli.stage_entries import FOLLOWED, STAGE
from v1lit.training.attempts import LAUNCH
from v1lit.training.checkpoints import newest_checkpoint
from v1lit.training.stopping import RunStopped, StopRequests

LOST = ("DataLoader worker", "Connection closed by peer", "Connection reset by peer")
"""In messages of torch about another process that is gone."""


@contextmanager
def stoppable(requests: StopRequests, when: Callable[[], str]) -> Iterator[None]:
    """Every way in which someone stops what is done inside becomes a RunStopped; `when` is asked then."""
    try:
        yield
    except RunStopped:
        raise
    except (KeyboardInterrupt, SystemExit) as error:
        # How the Trainer ends after a KeyboardInterrupt.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise RunStopped(requests.received or signal.SIGINT, when()) from error
    except RuntimeError as error:
        # The signal went to all processes, and ended one that reads data, or another rank.
        if requests.received is None or not any(words in str(error) for words in LOST):
            raise
        raise RunStopped(requests.received, f"{when()}, with its other processes") from error


def tell_stopped(stop: RunStopped, folder: Path, argv: Sequence[str], name: str) -> int:
    """Say on one line what is left and how to resume, after `v1lit run *argv`; returns the exit code.

    Args:
        stop: how it was stopped.
        folder: with its checkpoints.
        argv: its command.
        name: of the run.
    """
    if is_helper():
        return 0  # else its launcher kills the first process, which has yet to say all this
    if is_first():
        newest = newest_checkpoint(folder)
        if newest is None:
            left = "there is no checkpoint to resume from"
        else:
            left = f"checkpoint {newest}; resume with: {resume_command(argv, name)}"
        sys.stderr.write(f"{stop}; {left}\n")
    return stop.exit_code


def resume_command(argv: Sequence[str], name: str) -> str:
    """The command of the run of this name, changed to resume from its newest checkpoint.

    Of a launched run, whose own command is that of one rank, what to add to that of the launch; of a stage
    that others follow, the command of all.
    """
    if os.environ.get(LAUNCH):
        return f"the command of the launch and --run.name={shlex.quote(name)}"
    recipe, *changes = argv
    others = ("run.name", "run.resume", *([STAGE] if FOLLOWED in os.environ else []))
    kept = [(key, value) for key, value in read_changes(changes) if key not in others]
    pairs = [*kept, ("run.name", name), ("run.resume", "last")]
    return shlex.join(["lightning", "run", recipe, *(f"--{key}={value}" for key, value in pairs)])
