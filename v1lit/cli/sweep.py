"""`v1lit sweep SWEEP`: many runs of one recipe that differ in a few keys, and how they compare."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from v1lit.cli.errors import Parser, RunFailed, UserError, a_path
from v1lit.cli.recipe import find_file, shipped_recipes, shown
from v1lit.cli.sweep_executor import add_executors, count, executor_of, runs_elsewhere
from v1lit.console import screen
from v1lit.errors import OptionError
from v1lit.sweep.config import Sweep, read_sweep
from v1lit.sweep.driver import Driver
from v1lit.sweep.executor import Executor, ExecutorError
from v1lit.sweep.folder import SweepFolder, SweepFolderError, description
from v1lit.sweep.grid import Trial, make_trials
from v1lit.sweep.table import Watch, failures, status

if TYPE_CHECKING:
    pass

ABOUT = "Run every trial of a sweep as a `lightning run` of its own; the same command resumes it."
MORE = """also: v1lit sweep status FOLDER, which shows a sweep from another terminal, and
v1lit sweep report FOLDER, which compares its trials.
exit codes: 0 all trials are done, 3 some were given up, 130 or 143 stopped."""


def main(argv: Sequence[str]) -> int:
    """Run `v1lit sweep` with the arguments after `sweep`; returns the exit code."""
    if argv and argv[0] == "status":
        return _status(argv[1:])
    if argv and argv[0] == "report":
        from v1lit.cli import sweep_report

        return sweep_report.main(argv[1:])
    options = _parser().read(argv)
    if options.elsewhere and not options.dry_run:
        raise UserError("--elsewhere checks a sweep for another machine\ngive it with --dry-run")
    path = _file(options.sweep)
    with _mistakes(path):
        sweep = read_sweep(_content(path), path, _find)
        trials = make_trials(sweep)
    folder = SweepFolder(Path(options.folder or f"sweeps/{sweep.name}"))
    # Other machines have other devices and files; but what a step costs is found out on this one.
    elsewhere = options.elsewhere or (runs_elsewhere(options) and sweep.budget.kind in ("steps", "seconds"))
    from v1lit.cli.sweep_check import Checker  # torch and Lightning: once the file has been read

    with _mistakes(path):
        checked = Checker(sweep, shown(path), folder, options.dry_run, elsewhere).all(trials)
    executor = executor_of(options, sweep.name, folder, checked)
    if options.dry_run:
        from v1lit.cli.sweep_plan import show_plan

        show_plan(sweep, checked, folder, executor.jobs, screen(), here=not options.elsewhere)
        return 0
    return _drive(options, sweep, [one.trial for one in checked], folder, executor)


def _parser() -> Parser:
    parser = Parser(prog="v1lit sweep", description=ABOUT, epilog=MORE,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("sweep", metavar="SWEEP", help="a YAML file such as recipes/sweeps/smoke.yaml")
    add("--folder", type=a_path, help="where all of it lies; default sweeps/NAME")
    add(
        "--dry-run",
        action="store_true",
        help="check every trial and print what all will cost; trains nothing",
    )
    add("--elsewhere", action="store_true", help="with --dry-run: for a machine with other devices and files")
    add_executors(parser)
    add(
        "--attempts",
        type=count,
        default=3,
        help="starts of a trial that fails until it is given up; default 3",
    )
    add("--retry-failed", action="store_true", help="try trials anew that were given up earlier")
    return parser


def _status(argv: Sequence[str]) -> int:
    parser = Parser(prog="v1lit sweep status", description="Show a sweep, from its folder alone.")
    parser.add_argument("folder", metavar="FOLDER", type=a_path)
    folder = SweepFolder(Path(parser.read(argv).folder))
    with _mistakes(folder.path):
        table, failed = status(folder, time.time())
    screen().print(table)
    for line in failed:
        screen().print(line, soft_wrap=True)
    return 0


def _drive(
    options: argparse.Namespace,
    sweep: Sweep,
    trials: Sequence[Trial],
    folder: SweepFolder,
    executor: Executor,
) -> int:
    program = [sys.executable, "-m", "v1lit.cli.main", "run"]
    commands = {trial.name: [*program, *trial.words(sweep.base, folder.path)] for trial in trials}
    with _mistakes(folder.path), folder.driven():
        folder.describe(description(sweep, trials))
        with Watch(screen()) as watch:
            driver = Driver(folder, commands, executor, options.attempts, options.retry_failed, watch)
            try:
                code = driver.run()
            except ExecutorError as error:
                raise RunFailed(str(error)) from error
    for line in failures(folder, driver.past):
        screen().print(line, soft_wrap=True)
    screen().print(f"the sweep lies in {folder.path}", soft_wrap=True)
    return code


# ---- reading -----------------------------------------------------------------------------------------------


def _file(text: str) -> Path:
    path = find_file(text, Path())
    if path is None:
        raise UserError(f"there is no sweep file {text!r}\ngive one such as recipes/sweeps/smoke.yaml")
    return path


def _find(text: str, folder: Path) -> Path | None:
    """A recipe or part that a sweep file names, as it can be typed."""
    if text in shipped_recipes():
        return Path(text)
    place = find_file(text, folder)
    return None if place is None else Path(shown(place))


def _content(path: Path) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, OSError) as error:
        raise UserError(f"{shown(path)}: not valid YAML: {str(error).splitlines()[0]}") from error


@contextmanager
def _mistakes(path: Path) -> Iterator[None]:
    """Make a UserError of what is wrong with a sweep file or folder."""
    try:
        yield
    except OptionError as error:
        raise UserError(error.told(shown(path))) from error
    except SweepFolderError as error:
        raise UserError(str(error)) from error
