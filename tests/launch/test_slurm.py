"""Scripts for SLURM: what stands in them, and that no value says more than itself."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.nasty_values import NASTY

from v1lit.errors import OptionError
from v1lit.launch.job import Job
from v1lit.launch.slurm import Slurm, script

TOOLS = {
    "srun": 'printf "%s\\0" "$@" > words; env -0 > variables',
    "scontrol": "echo first; echo second",
    "module": 'echo "$@" >> modules',
}
"""Stand-ins that write down how they are called."""


def run_script(text: str, folder: Path) -> list[str]:
    """What `srun` is given when bash runs a script."""
    for name, body in TOOLS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    (folder / "job.sh").write_text(text)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "77"}
    subprocess.run(["bash", "job.sh"], cwd=folder, env=environment, check=True)
    assert not (folder / "made").exists(), "a value was run"
    return (folder / "words").read_text().split("\0")[:-1]


def variables_of(folder: Path) -> dict[str, str]:
    """The environment that `srun` had."""
    pairs = (text.partition("=") for text in (folder / "variables").read_text().split("\0"))
    return {name: value for name, _, value in pairs}


def directives(text: str) -> list[str]:
    """Options that sbatch reads: in the lines up to the first command."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    return [line.removeprefix("#SBATCH ") for line in lines[:first] if line.startswith("#SBATCH")]


def test_a_script_asks_for_nodes_and_runs_one_launcher_on_each(
    a_job: Callable[..., Job], tmp_path: Path
) -> None:
    slurm = Slurm(
        partition="gpu", account="abc123", qos="long", time="1-00:00:00", gpus="a100:4", cpus=32,
        memory="900G", directives=("--exclusive",), modules=("cuda/12.8",), setup=("export HERE=1",),
        image="/images/v1lit.sqsh", mounts="/data:/data",
    )  # fmt: skip
    text = script(a_job(interface="ib0", changes={"trainer.max_steps": "7"}), slurm)
    assert directives(text) == [
        "--job-name=it", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=a100:4", "--cpus-per-task=32",
        "--mem=900G", "--partition=gpu", "--account=abc123", "--qos=long", "--time=1-00:00:00",
        "--signal=USR1@300", "--output=logs/%x-%j.out", "--open-mode=append", "--requeue", "--exclusive",
    ]  # fmt: skip
    words = run_script(text, tmp_path)
    at = words.index("v1lit")
    assert words[:at] == [
        "--ntasks-per-node=1", "--cpus-per-task=32", "--kill-on-bad-exit=1",
        "--container-image=/images/v1lit.sqsh", "--container-mounts=/data:/data",
    ]  # fmt: skip
    assert words[at:] == [
        "v1lit", "launch", "node", "tiny_qwen", "--nodes=2", "--procs=4", "--port=29500",
        "--max-restarts=100", "--max-failures=3", "--join-timeout=600", "--trainer.max_steps=7",
        "--run.name=it", "--run.resume=auto", "--host=first", "--number-from=SLURM_NODEID",
        "--launch=slurm-77",
    ]  # fmt: skip
    seen = variables_of(tmp_path)
    assert (seen["NCCL_SOCKET_IFNAME"], seen["GLOO_SOCKET_IFNAME"], seen["HERE"]) == ("ib0", "ib0", "1")
    assert (tmp_path / "modules").read_text() == "load cuda/12.8\n"


def test_a_job_that_can_lose_nodes_keeps_the_others(a_job: Callable[..., Job], tmp_path: Path) -> None:
    text = script(a_job(nodes=(2, 8)), Slurm())
    assert {"--nodes=2-8", "--no-kill"} <= set(directives(text))
    words = run_script(text, tmp_path)
    assert {"--kill-on-bad-exit=0", "--no-kill", "--nodes=2:8"} <= set(words)


@pytest.mark.parametrize(("code", "queued"), [(0, False), (1, False), (3, False), (143, True)])
def test_only_a_job_that_was_told_to_stop_is_queued_again(
    code: int, queued: bool, a_job: Callable[..., Job], tmp_path: Path
) -> None:
    (tmp_path / "srun").write_text(f"#!/bin/bash\nexit {code}\n")
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "$@" >> said\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(script(a_job(), Slurm()))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "n", "SLURM_JOB_ID": "77"}
    done = subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == code
    assert ("requeue 77" in (tmp_path / "said").read_text()) is queued


@pytest.mark.parametrize("value", NASTY)
def test_a_value_in_a_script_is_itself_and_nothing_else(
    value: str, a_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = a_job(
        recipe=f"recipes/{value}.yaml",
        name=value,
        changes={"data.source.path": value},
        environment={"MINE": value},
    )
    text = script(job, Slurm(image=value, mounts=value))
    words = run_script(text, tmp_path)
    wanted = {f"--{key}={value}" for key in ("data.source.path", "run.name", "container-image")}
    assert wanted | {f"recipes/{value}.yaml"} <= set(words)
    assert variables_of(tmp_path)["MINE"] == value
    assert [line for line in directives(text) if "nodes=" in line] == ["--nodes=2"]
    (name,) = [line for line in directives(text) if line.startswith("--job-name=")]
    assert shlex.split(name) == [name]


@pytest.mark.parametrize(
    ("flag", "options"),
    [
        *((f"--{name}", {name: "a b"}) for name in ("partition", "account", "qos", "memory", "logs")),
        *(("--partition", {"partition": value}) for value in NASTY),
        ("--time", {"time": "tomorrow"}),
        ("--gpus-per-node", {"gpus": "all"}),
        ("--cpus-per-task", {"cpus": 0}),
        ("--warning", {"warning": 0}),
        ("--module", {"modules": ("cuda; rm",)}),
        ("--directive", {"directives": ("--comment=a b",)}),
        ("--directive", {"directives": ("exclusive",)}),
        ("--setup", {"setup": ("a\0b",)}),
    ],
)
def test_what_a_script_cannot_hold_is_refused_naming_the_flag(flag: str, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=rf"^{flag} is "):
        Slurm(**options)


@pytest.mark.parametrize("nodes", [(2, 2), (1, 4)])
def test_shellcheck_finds_nothing_in_scripts(
    nodes: tuple[int, int], a_job: Callable[..., Job], tmp_path: Path
) -> None:
    text = script(
        a_job(nodes=nodes, environment={"A": "$x `y` 'z'\n"}, interface="ib0"),
        Slurm(modules=("cuda",), setup=("export B=1",), image="a b", mounts="/a:/b"),
    )
    (tmp_path / "job.sh").write_text(text)
    done = subprocess.run(
        ["shellcheck", str(tmp_path / "job.sh")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
