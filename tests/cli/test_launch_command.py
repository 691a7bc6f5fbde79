"""`v1lit launch`: what it prints, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from v1lit.cli.launch import folder_of
from v1lit.cli.main import main
from v1lit.launch.job import Job

SLURM = ("launch", "slurm", "tiny_qwen", "--nodes=2", "--gpus-per-node=8")
K8S = ("launch", "k8s", "tiny_qwen", "--nodes=2", "--gpus-per-node=8", "--image=v1lit")


def test_a_script_has_what_its_options_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SLURM, "--partition=gpu", "--env=A=b=c", "--trainer.max_steps=7", "--run.name=mine"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "#SBATCH --partition=gpu",
        "#SBATCH --job-name=mine",
        "#SBATCH --gpus-per-node=8",
        "export A=b=c",
    ):
        assert line in printed.splitlines()
    assert "  --run.name=mine \\\n  --run.resume=auto \\\n" in printed
    assert "  --procs=8 \\\n" in printed


def test_a_run_without_a_name_is_called_after_recipe_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*K8S, "--claim=data:/data", "--node-selector=pool=a100"]) == 0
    document = yaml.safe_load(capsys.readouterr().out)
    assert document["metadata"]["name"].startswith("tiny-qwen-2")
    pod = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "a100"}
    assert pod["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 8}}


def test_a_recipe_inside_of_an_image_need_not_be_here(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["/opt/recipes/mine.yaml" if word == "tiny_qwen" else word for word in K8S]
    assert main(arguments) == 0
    assert "v1lit launch node /opt/recipes/mine.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("launch", "slrum"), "v1lit launch has no 'slrum'; did you mean 'slurm'?"),
        (("launch", "slurm"), "the following arguments are required: RECIPE"),
        (("launch", "slurm", "no_such", "--nodes=1", "--gpus-per-node=1"), "no recipe 'no_such'"),
        ((*SLURM, "--partitoin=gpu"), "does not take '--partitoin'; did you mean '--partition'?"),
        ((*SLURM, "--nodes=two"), "argument --nodes: 'two' is no number of nodes; give N, or MIN:MAX"),
        ((*SLURM, "--nodes=0"), "--nodes is '0:0'; give a number from 1 on, or MIN:MAX"),
        ((*SLURM, "--gpus-per-node=all"), "--gpus-per-node is 'all'; give a number from 1 on"),
        ((*SLURM, "--gpus-per-node=0"), "--gpus-per-node is '0'; give a number from 1 on"),
        ((*SLURM, "--env=NAME"), "--env is 'NAME'; give NAME=VALUE"),
        ((*SLURM, "--partition=a b"), "--partition is 'a b'; letters, digits"),
        ((*SLURM, "--trainer.devices=4"), "--trainer.devices is '4'; --procs says it, or --gpus-per-node"),
        (
            (*SLURM, "--run.resume=other.ckpt"),
            "run.resume is 'other.ckpt'; a launched run resumes from its own",
        ),
        ((*K8S, "--nodes=1:2"), "--nodes is '1:2'; a JobSet has a fixed number of pods"),
        ((*K8S, "--claim=data"), "--claim is 'data'; give NAME:VALUE"),
        (("launch", "node", "tiny_qwen", "--nodes=1", "--procs=1", "--host=h"), "--number is missing"),
        (
            ("launch", "node", "tiny_qwen", "--nodes=1", "--procs=1", "--host=h", "--number-from=NOWHERE"),
            "--number-from is 'NOWHERE'; the environment has '' there, and no number",
        ),
        (
            ("launch", "local", "tiny_qwen", "--nodes=1", "--procs=0"),
            "--procs is '0'; give a number from 1 on",
        ),
    ],
)
def test_what_cannot_be_launched_is_refused(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert len(error.splitlines()) <= 2


def test_submitting_hands_the_script_to_sbatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*SLURM, "--submit"]) == 2
    assert "--submit needs sbatch, which is not here" in capfd.readouterr().err
    (tmp_path / "sbatch").write_text("#!/bin/sh\n/bin/cat > script\necho Submitted batch job 7\n")
    (tmp_path / "sbatch").chmod(0o755)
    assert main([*SLURM, "--submit", "--logs=printed"]) == 0
    assert capfd.readouterr().out == "Submitted batch job 7\n"
    assert (tmp_path / "script").read_text().startswith("#!/bin/bash\n#SBATCH --job-name=tiny_qwen-")
    assert (tmp_path / "printed").is_dir(), "without it SLURM fails the job, and says nothing"
    (tmp_path / "sbatch").write_text("#!/bin/sh\nexit 4\n")
    assert main([*SLURM, "--submit"]) == 1


def test_the_folder_of_a_run_is_known_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "PLACE", str(tmp_path))
    job = Job(recipe="tiny_qwen", changes={"run.folder": "$PLACE/runs"}, name="007", nodes=(1, 1), procs=1)
    assert folder_of(job) == tmp_path / "runs" / "007"
