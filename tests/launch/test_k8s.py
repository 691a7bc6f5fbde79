"""Manifests for Kubernetes: what stands in them, and that no value says more than itself."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.nasty_values import NASTY
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet
from pydantic import ValidationError

from v1lit.errors import OptionError
from v1lit.launch.job import Job
from v1lit.launch.k8s import Kubernetes, manifest, name_of


def assert_valid(document: dict[str, Any]) -> None:
    """Every field is one of the schema's of Kubernetes and JobSet, and has its type."""
    read = JobsetV1alpha2JobSet.from_dict(document)
    assert read is not None
    (container,) = job_of(document)["template"]["spec"]["containers"]
    (port,) = container["ports"]
    port.setdefault("protocol", "TCP")  # the schema's default, which is filled in by reading
    assert read.to_dict() == document, "the schema does not have all of its fields, or not with these types"


def full() -> Kubernetes:
    return Kubernetes(
        image="registry.example/v1lit:1", namespace="team", queue="gpus", priority="high", account="trainer",
        time=3600, gpus=4, cpus="64", memory="900Gi", claims={"data": "/data"}, selectors={"pool": "a100"},
    )  # fmt: skip


def job_of(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    return spec


def container_of(text: str) -> dict[str, Any]:
    container: dict[str, Any] = job_of(yaml.safe_load(text))["template"]["spec"]["containers"][0]
    return container


@pytest.mark.parametrize("kubernetes", [Kubernetes("v1lit"), full()], ids=["least", "all"])
def test_a_manifest_keeps_to_the_schema_of_a_jobset(
    kubernetes: Kubernetes, a_job: Callable[..., Job]
) -> None:
    document = yaml.safe_load(manifest(a_job(interface="eth0"), kubernetes))
    assert_valid(document)
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    job = job_of(document)
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (2, 2, "Indexed")
    # A policy of pods needs this; a job that fails once is started again by the JobSet, all pods with it.
    assert (job["template"]["spec"]["restartPolicy"], job["backoffLimit"]) == ("Never", 0)


def test_a_schema_that_is_not_kept_is_seen(a_job: Callable[..., Job]) -> None:
    document = yaml.safe_load(manifest(a_job(), full()))
    job_of(document)["parallelism"] = "2"
    with pytest.raises(ValidationError, match="parallelism"):
        assert_valid(document)
    job_of(document).update(parallelism=2, paralelism=2)
    with pytest.raises(AssertionError, match="schema"):
        assert_valid(document)


def test_exit_codes_that_would_come_again_end_the_jobset(a_job: Callable[..., Job]) -> None:
    document = yaml.safe_load(manifest(a_job(), full()))
    (rule,) = job_of(document)["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2, 3])
    (end,) = document["spec"]["failurePolicy"]["rules"]
    assert (end["action"], end["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


@pytest.mark.parametrize("value", NASTY)
def test_a_value_in_a_manifest_is_itself_and_nothing_else(
    value: str, a_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = a_job(name=value or "it", changes={"data.source.path": value}, environment={"MINE": value})
    container = container_of(manifest(job, full()))
    assert "$(" not in container["command"][2].replace("$$", ""), "Kubernetes would put something in"
    (tmp_path / "v1lit").write_text('#!/bin/bash\nprintf "%s\\0" "$@" > words\n')
    (tmp_path / "v1lit").chmod(0o755)
    command = [text.replace("$$", "$") for text in container["command"]]
    subprocess.run(command, cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True)
    assert not (tmp_path / "made").exists()
    words = (tmp_path / "words").read_text().split("\0")
    assert {f"--data.source.path={value}", f"--run.name={value or 'it'}"} <= set(words)
    (mine,) = [entry["value"] for entry in container["env"] if entry["name"] == "MINE"]
    assert mine.replace("$$", "$") == value


@pytest.mark.parametrize("name", [*NASTY, "Run_1.2", "x" * 99, "7b"])
def test_names_of_pods_are_such_as_kubernetes_allows(name: str) -> None:
    made = name_of(name)
    assert len(f"{made}-nodes-0-1023") <= 63
    assert made[0].isalpha()
    assert made.replace("-", "").isalnum()
    assert made.isascii()
    assert made == made.lower().strip("-")


def test_nodes_meet_at_the_first_pod(a_job: Callable[..., Job]) -> None:
    command = container_of(manifest(a_job(name="My Run"), full()))["command"][2]
    assert "exec v1lit launch node" in command
    assert "--host=my-run-nodes-0-0.my-run --number-from=JOB_COMPLETION_INDEX" in command


@pytest.mark.parametrize(
    ("flag", "options"),
    [
        ("--image", {"image": "a b"}),
        ("--namespace", {"namespace": "A"}),
        ("--queue", {"queue": "a/b"}),
        ("--priority-class", {"priority": "a b"}),
        ("--service-account", {"account": "$x"}),
        ("--cpus", {"cpus": "many"}),
        ("--memory", {"memory": "900 GB"}),
        ("--shared-memory", {"shared_memory": ""}),
        ("--gpu-resource", {"gpu_resource": "a b"}),
        ("--claim", {"claims": {"data": "relative"}}),
        ("--claim", {"claims": {"Data": "/data"}}),
        ("--node-selector", {"selectors": {"a b": "c"}}),
        ("--grace", {"grace": 0}),
        ("--time", {"time": 0}),
        ("--setup", {"setup": ("\0",)}),
    ],
)
def test_what_a_manifest_cannot_hold_is_refused_naming_the_flag(flag: str, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=rf"^{flag} is "):
        Kubernetes(**{"image": "v1lit", **options})


def test_pods_are_not_elastic(a_job: Callable[..., Job]) -> None:
    with pytest.raises(OptionError, match=r"--nodes is '1:2'; a JobSet has a fixed number of pods"):
        manifest(a_job(nodes=(1, 2)), full())
