"""`v1lit sweep` as a person types it: what is checked before the first trial, and what resumes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.fake_slurm import fake_slurm
from helpers.launched_runs import environment
from helpers.sweeps import TINY, until

from v1lit.cli.main import main


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)


def write(**content: Any) -> None:
    Path("it.yaml").write_text(yaml.safe_dump({**TINY, **content}))


def sweep(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "v1lit.cli.main", "sweep", *words],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ledger() -> list[tuple[str, str]]:
    path = Path("sweeps/it/ledger.jsonl")
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(event["trial"], event["state"]) for event in found]


@pytest.mark.slow
def test_the_dry_run_finds_a_wrong_key_in_the_seventh_trial_and_starts_nothing(capsys: Any) -> None:
    widths: dict[str, Any] = {f"w{width}": {"model.pointer.width": width} for width in range(8, 14)}
    write(axes={"width": {**widths, "wrong": {"model.pointer.widht": 8}}})
    for words in (["--dry-run"], []):
        assert main(["sweep", "it.yaml", *words]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: trial 7 of 7, wrong-seed0: ")
        assert "unknown key 'model.pointer.widht' (it.yaml); did you mean 'model.pointer.width'?" in said
        assert not Path("sweeps").exists()


def test_a_seed_that_makes_a_key_wrong_is_found(capsys: Any) -> None:
    write(seeds=[2, 0], changes={**TINY["changes"], "model.pointer.width": "${seed_everything}"}, axes={})
    assert main(["sweep", "it.yaml", "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith("error: trial 2 of 2, seed0: model.pointer.width is 0")


def test_seeds_that_nothing_follows_are_refused(capsys: Any) -> None:
    fixed = {"model.init_seed": 3, "data.seed": 3}
    write(seeds=[0, 1], changes={**TINY["changes"], **fixed})
    assert main(["sweep", "it.yaml", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "hidden-seed1: seeds is [0, 1]; trials of seeds 0 and 1 would be alike" in said
    write(seeds=[0, 1], changes={**TINY["changes"], **fixed, "data.seed": "${seed_everything}"})
    assert main(["sweep", "it.yaml", "--dry-run"]) == 0


def test_a_trial_that_fails_is_told_at_the_end_and_by_status(capsys: Any) -> None:
    write(changes={**TINY["changes"], "data.source.folder": "/dev/null/x"}, axes={})
    assert main(["sweep", "it.yaml", "--attempts=2"]) == 3
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith("seed0: exit code ")
    assert said[-2].endswith(" (sweeps/it/output/seed0.txt)")
    assert main(["sweep", "status", "sweeps/it"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == said[-2]


def test_in_a_terminal_one_table_shows_every_trial_and_is_drawn_anew() -> None:
    write(changes={**TINY["changes"], "data.source.folder": "/dev/null/x"}, axes={}, seeds=[0, 1])
    screen, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (40, 120))
    command = [sys.executable, "-m", "v1lit.cli.main", "sweep", "it.yaml", "--attempts=1"]
    environ = {**environment(), "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, env=environ, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # the terminal is gone when the process is
        while part := os.read(screen, 65536):
            shown += part
    os.close(screen)
    assert process.wait() == 3
    text = shown.decode()
    assert "\x1b[1A" in text, "nothing was drawn over"
    assert len(re.findall("trial.+state.+step.+val/loss.+time.+left", text)) > 1
    assert re.search("seed0.+runs", text)
    last = text[text.rindex("trial") :]
    assert all(re.search(f"seed{seed}.+failed", last) for seed in (0, 1))


def test_a_wrong_sweep_file_is_a_mistake_that_names_it(capsys: Any) -> None:
    write(seeds=[-1])
    assert main(["sweep", "it.yaml", "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith("error: seeds is [-1] (it.yaml); give different whole numbers")
    assert main(["sweep", "other.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no sweep file 'other.yaml'")
    assert main(["sweep", "status", "nowhere"]) == 2
    assert capsys.readouterr().err == "error: nowhere is no folder of a sweep: there is no such folder\n"


@pytest.mark.slow
def test_a_killed_sweep_of_real_runs_resumes_them_and_a_changed_file_is_refused(capsys: Any) -> None:
    write(budget={"steps": 30})
    driver = sweep("it.yaml", "--jobs=2")
    trials = Path("sweeps/it/trials")
    checkpoints = [trials / name / "checkpoints/last.ckpt" for name in ("hidden-seed0", "embedding-seed0")]
    until(lambda: all(path.exists() for path in checkpoints), "both trials have saved")
    driver.send_signal(signal.SIGKILL)
    driver.communicate(timeout=60)

    again = sweep("it.yaml", "--jobs=2")
    said, _ = again.communicate(timeout=200)
    assert again.returncode == 0, said
    for name in ("hidden-seed0", "embedding-seed0"):
        # Without the middle, should a trial have come to its end before it heard of it.
        assert [state for trial, state in ledger() if trial == name][-1] == "done"
        assert json.loads((trials / name / "metrics.json").read_text())["train/steps"] == 30
        output = (trials.parent / "output" / f"{name}.txt").read_text()
        assert "stopped by SIGTERM" in output
        assert (trials / name / "recipe-2.yaml").exists()

    before = ledger()
    assert main(["sweep", "it.yaml"]) == 0
    assert ledger() == before
    assert main(["sweep", "status", "sweeps/it"]) == 0
    assert "it: 2 done" in capsys.readouterr().out

    write(budget={"steps": 31})
    assert main(["sweep", "it.yaml"]) == 2
    said = capsys.readouterr().err
    assert "sweeps/it holds a sweep that differs: budget.steps was 30 and is 31, trial hidden-seed0." in said


@pytest.mark.slow
def test_a_budget_of_tokens_is_used_by_every_trial_up_to_half_a_step(capsys: Any) -> None:
    widths = {"short": {"data.batch_size": 2}, "long": {"data.batch_size": 4}}
    write(axes={"rows": widths}, budget={"tokens": 2400})
    assert main(["sweep", "it.yaml", "--jobs=2"]) == 0
    described = json.loads(Path("sweeps/it/sweep.json").read_text())
    steps = {trial["name"]: trial["changes"]["trainer.max_steps"] for trial in described["trials"]}
    assert steps["short-seed0"] == pytest.approx(2 * steps["long-seed0"], abs=1)
    for name, number in steps.items():
        measured = json.loads(Path(f"sweeps/it/trials/{name}/metrics.json").read_text())
        assert measured["train/steps"] == number
        # Both are of the whole run, which is shorter than the interval between two logs.
        each = measured["train/real_tokens_per_second"] * measured["train/seconds_per_step"]
        assert number * each == pytest.approx(2400, abs=each)


@pytest.mark.slow
def test_a_budget_of_flops_gives_cheaper_trials_more_steps() -> None:
    layers = {"two": {}, "six": {"model.backbone.tiny.layers": 6}}
    write(axes={"layers": layers}, budget={"flops": 2.0e10})
    assert main(["sweep", "it.yaml", "--jobs=2"]) == 0
    steps = {}
    for path in Path("sweeps/it/trials").iterdir():
        measured = json.loads((path / "metrics.json").read_text())
        steps[path.name], each = measured["train/steps"], measured["train/flops_per_step"]
        assert steps[path.name] * each == pytest.approx(2.0e10, abs=each)
    assert steps["two-seed0"] > steps["six-seed0"] > 1


@pytest.mark.slow
def test_a_run_that_is_killed_resumes_from_its_checkpoint() -> None:
    write(axes={}, budget={"steps": 30})
    driver = sweep("it.yaml")
    place = Path("sweeps/it/trials/seed0")
    until(lambda: (place / "checkpoints/last.ckpt").exists(), "the trial has saved")
    started = json.loads(Path("sweeps/it/ledger.jsonl").read_text().splitlines()[0])
    os.kill(started["pid"], signal.SIGKILL)
    said, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, said
    assert [state for _, state in ledger()] == ["started", "failed", "started", "done"]
    first = (place / "csv-2/metrics.csv").read_text().splitlines()[1]
    assert int(first.split(",")[1]) > 0, "it has begun anew"
    assert json.loads((place / "metrics.json").read_text())["train/steps"] == 30


def test_seconds_need_a_schedule_that_knows_no_end(capsys: Any) -> None:
    write(budget={"seconds": 90})
    assert main(["sweep", "it.yaml", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert (
        "budget.seconds is 90; a linear schedule with a warm-up of 0.05 needs to know its last step" in said
    )
    constant = {"model.optimizer.schedule": "constant", "model.optimizer.warmup": 0}
    write(budget={"seconds": 90}, changes={**TINY["changes"], **constant})
    assert main(["sweep", "it.yaml", "--dry-run"]) == 0
    assert "--trainer.max_time=00:00:01:30" in capsys.readouterr().out


def test_the_dry_run_says_what_is_not_known_before_there_are_data(capsys: Any) -> None:
    assert main(["sweep", "it.yaml", "--dry-run"]) == 2
    write()
    assert main(["sweep", "it.yaml", "--dry-run", "--jobs=2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("it: 2 trials of 4 steps, 2 at a time, in sweeps/it\n")
    assert "tokens and time are not known: the training data are not there yet" in said
    assert "the first: lightning run tiny_qwen --seed_everything=0 " in said
    assert not Path("sweeps").exists()
    assert not Path("data").exists()


def test_a_sweep_for_another_machine_is_checked_without_its_devices(capsys: Any) -> None:
    write(base="qwen_v1g", changes={}, axes={}, budget={"steps": 100})
    assert main(["sweep", "it.yaml", "--elsewhere"]) == 2
    assert main(["sweep", "it.yaml", "--dry-run", "--elsewhere"]) == 0
    said = capsys.readouterr().out
    assert "seed0" in said
    assert "the disk has" not in said


@pytest.mark.slow
def test_a_logger_of_the_recipe_gets_the_sweep_as_its_group(capsys: Any) -> None:
    logger = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "tb"}}
    write(changes={**TINY["changes"], "trainer.logger": logger}, axes={}, budget={"steps": 1})
    assert main(["sweep", "it.yaml"]) == 0
    assert list(Path("tb/it/seed0").glob("events.*"))


@pytest.mark.slow
def test_trials_are_real_runs_as_jobs_of_slurm_and_other_executors_keep_off(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    variables = fake_slurm(tmp_path / "cluster")
    monkeypatch.setenv("PATH", variables["PATH"])
    write()
    driver = sweep("it.yaml", "--executor=slurm", "--time=1:00:00")
    until(lambda: [state for _, state in ledger()] == ["started"] * 2, "both are submitted")
    driver.send_signal(signal.SIGKILL)
    driver.communicate(timeout=60)
    assert main(["sweep", "it.yaml"]) == 2
    assert "jobs of SLURM may still run trials of sweeps/it\nresume with --exec" in capsys.readouterr().err
    again = sweep("it.yaml", "--executor=slurm", "--time=1:00:00")
    said, _ = again.communicate(timeout=200)
    assert again.returncode == 0, said
    assert [state for _, state in ledger()] == ["started"] * 2 + ["done"] * 2
    assert "#SBATCH --time=1:00:00\n" in Path("sweeps/it/jobs/hidden-seed0.sh").read_text()


def test_options_of_one_executor_are_refused_with_another(capsys: Any) -> None:
    write()
    assert main(["sweep", "it.yaml", "--partition=gpu"]) == 2
    assert capsys.readouterr().err.startswith("error: --partition says how SLURM runs a job")
    assert main(["sweep", "it.yaml", "--executor=slurm", "--gpus-per-trial=0.5"]) == 2
    assert capsys.readouterr().err.startswith("error: --gpus-per-trial is a share, and SLURM")
    assert main(["sweep", "it.yaml", "--executor=slurm", "--time=long"]) == 2
    assert capsys.readouterr().err.startswith("error: --time is 'long'; give hours")


def test_the_dry_run_of_a_ray_cluster_needs_none_and_others_say_why_there_is_none(
    monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    write()
    assert main(["sweep", "it.yaml", "--executor=ray", "--dry-run", "--address=10.0.0.1:6379"]) == 0
    assert capsys.readouterr().out.startswith("it: 2 trials of 4 steps, 2 at a time, in sweeps/it\n")
    assert main(["sweep", "it.yaml", "--executor=ray"]) == 2
    said = capsys.readouterr().err
    assert said == 'error: --executor=ray needs Ray: pip install "v1lit[ray]"\n'
    for address in ("local", "ray://10.0.0.1:10001"):
        assert main(["sweep", "it.yaml", "--executor=ray", f"--address={address}"]) == 2
        said = capsys.readouterr().err
        assert (
            said
            == f"error: --address is {address!r}; give HOST:PORT of a Ray cluster, or auto for the one here\n"
        )
    for option in ("--address=10.0.0.1:6379", "--wait=3"):
        assert main(["sweep", "it.yaml", option]) == 2
        assert f"error: {option.split('=')[0]} says something of a Ray cluster" in capsys.readouterr().err
    assert not Path("sweeps").exists()
