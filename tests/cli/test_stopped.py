"""A run that is stopped, whenever that is, says what is left and how to resume."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from v1lit.cli.main import main
from v1lit.cli.stopped import resume_command
from v1lit.training import results
from v1lit.training import run as training_run
from v1lit.training.checkpoints import LastCheckpoint
from v1lit.training.module import V1Module

pytestmark = [pytest.mark.dependencies, pytest.mark.slow, pytest.mark.usefixtures("in_fresh_folder")]

SMALL = [
    "tiny_qwen",
    "--data.source.options.examples=24",
    "--data.source.options.val_examples=4",
    "--data.batch_size=2",
    "--data.val_batch_size=1",
    "--data.num_workers=0",
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=2",
    "--trainer.enable_progress_bar=false",
    "--model.backbone.attention=sdpa",
    "--run.peak_tflops=1",
    "--run.report_examples=1",
    "--run.report_max_new_tokens=4",
    "--run.pictures=0",
    "--run.name=stopped",
]
LAST = "runs/stopped/checkpoints/last.ckpt"


@pytest.fixture
def stop(monkeypatch: Any) -> Any:
    def stop(owner: Any, name: str, number: int = signal.SIGINT, call: int = 1, times: int = 1) -> None:
        """Send a signal at the beginning of this call of a function."""
        plain, calls = getattr(owner, name), 0

        def signalled(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                for _ in range(times):
                    os.kill(os.getpid(), number)
            return plain(*args, **options)

        monkeypatch.setattr(owner, name, signalled)

    return stop


def last_line(capfd: Any) -> str:
    line: str = capfd.readouterr().err.strip().splitlines()[-1]
    return line


def go_on(line: str) -> int:
    """Run the command that a message names."""
    lightning, run, *arguments = shlex.split(line.partition("resume with: ")[2])
    assert (lightning, run) == ("lightning", "run")
    return main(["run", *arguments])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)]
)
def test_a_run_stopped_in_a_step_names_the_checkpoint_and_the_command_to_resume(
    number: int, code: int, stop: Any, capfd: Any, monkeypatch: Any
) -> None:
    with monkeypatch.context() as patch:
        stop(V1Module, "training_step", number, call=3)
        assert main(["run", *SMALL]) == code
        patch.undo()
    line = last_line(capfd)
    assert f" after step 3; checkpoint {LAST}; resume with: lightning run tiny_qwen --data." in line
    assert line.endswith("--run.name=stopped --run.resume=last")
    assert torch.load(LAST, weights_only=True)["global_step"] == 3
    assert go_on(line) == 0
    assert torch.load(LAST, weights_only=True)["global_step"] == 4


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ((training_run, "checkpoint_to_resume"), "stopped by Ctrl-C before the first step"),
        ((V1Module, "configure_optimizers"), "stopped by Ctrl-C before the first step"),
    ],
)
def test_before_the_first_step_there_is_nothing_to_go_on_from(
    where: tuple[Any, str], said: str, stop: Any, capfd: Any
) -> None:
    stop(*where)
    assert main(["run", *SMALL]) == 130
    assert last_line(capfd) == f"{said}; there is no checkpoint to resume from"


def test_stopped_while_data_are_prepared_a_run_leaves_nothing(stop: Any, capfd: Any) -> None:
    from v1lit.data import datamodule

    stop(datamodule, "prepare_source", signal.SIGTERM)
    assert main(["run", *SMALL]) == 143
    assert last_line(capfd).startswith(
        "stopped by SIGTERM while its data were prepared; there is no checkpoint"
    )
    assert not Path("runs").exists()


def test_a_second_ctrl_c_names_the_newest_checkpoint_that_there_is(stop: Any, capfd: Any) -> None:
    stop(V1Module, "training_step", call=4, times=2)
    assert main(["run", *SMALL, "--run.checkpoint_every=1"]) == 130
    assert f"stopped by Ctrl-C at once, after step 3; checkpoint {LAST};" in last_line(capfd)
    assert torch.load(LAST, weights_only=True)["global_step"] == 3


def test_a_run_stopped_in_a_validation_validates_when_it_goes_on(stop: Any, capfd: Any) -> None:
    # Two batches to check that it works, then four after each second step.
    stop(V1Module, "validation_step", call=2 + 4 + 2)
    assert main(["run", *SMALL]) == 130
    line = last_line(capfd)
    assert f"stopped by Ctrl-C in a validation after step 4; checkpoint {LAST}" in line
    assert go_on(line) == 0
    logged = [Path(f"runs/stopped/{csv}/metrics.csv").read_text() for csv in ("csv", "csv-2")]
    assert ["val/loss" in text for text in logged] == [True, True]


def test_a_run_stopped_in_its_report_makes_it_when_it_goes_on(stop: Any, capfd: Any) -> None:
    stop(results, "ask_held_out")
    assert main(["run", *SMALL]) == 130
    line = last_line(capfd)
    assert f"stopped by Ctrl-C in the report, after all 4 steps; checkpoint {LAST}" in line
    assert not Path("runs/stopped/metrics.json").exists()
    assert go_on(line) == 0
    assert Path("runs/stopped/metrics.json").exists()


def test_a_failure_is_no_stop(stop: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(LastCheckpoint, "save", "no function")
    with pytest.raises(TypeError, match="not callable"):
        main(["run", *SMALL])


def test_the_command_keeps_all_changes_but_those_of_the_run(tmp_path: Path) -> None:
    argv = [
        "my recipe.yaml",
        "--run.name",
        "a",
        "--run.resume=x.ckpt",
        "--trainer.max_steps",
        "3",
        "--run.folder=out",
    ]
    assert resume_command(argv, "b-2") == (
        "lightning run 'my recipe.yaml' --trainer.max_steps=3 --run.folder=out "
        "--run.name=b-2 --run.resume=last"
    )


def test_of_a_launched_run_the_launch_is_to_be_repeated(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("V1LIT_LAUNCH", "local-1")
    argv = ["tiny_qwen", "--trainer.num_nodes=2", "--trainer.devices=1"]
    assert resume_command(argv, "it") == "the command of the launch and --run.name=it"
