"""What is said of every job, whatever launches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from v1lit.errors import OptionError
from v1lit.launch.job import Job


@pytest.mark.parametrize(
    ("flag", "options"),
    [
        ("--nodes", {"nodes": (0, 2)}),
        ("--nodes", {"nodes": (3, 2)}),
        ("--procs", {"procs": 0}),
        ("--port", {"port": 70000}),
        ("--max-restarts", {"max_restarts": -1}),
        ("--max-failures", {"max_failures": 0}),
        ("--join-timeout", {"join_timeout": 0}),
        ("--interface", {"interface": "eth0; ls"}),
        ("--env", {"environment": {"A B": "1"}}),
        ("--env", {"environment": {"A": "\0"}}),
        ("--trainer.devices", {"changes": {"trainer.devices": "3"}}),
        ("--trainer.num_nodes", {"changes": {"trainer.num_nodes": "3"}}),
        ("--data.source.path", {"changes": {"data.source.path": "\0"}}),
        ("RECIPE", {"recipe": "--submit"}),
        ("RECIPE", {"recipe": " "}),
    ],
)
def test_a_job_that_cannot_be_is_refused_naming_the_flag(
    flag: str, options: dict[str, Any], a_job: Callable[..., Job]
) -> None:
    with pytest.raises(OptionError, match=rf"^{flag} is "):
        a_job(**options)


def test_every_start_of_a_run_resumes_under_the_same_name(a_job: Callable[..., Job]) -> None:
    words = a_job(changes={"trainer.max_steps": "7"}).change_words()
    assert words == ["--trainer.max_steps=7", "--run.name=it", "--run.resume=auto"]
    assert "--run.resume=last" in a_job(changes={"run.resume": "last"}).change_words()


def test_an_interface_is_that_of_all_who_talk_to_other_ranks(a_job: Callable[..., Job]) -> None:
    seen = a_job(interface="ib0", environment={"GLOO_SOCKET_IFNAME": "eth0"}).variables
    assert seen == {"NCCL_SOCKET_IFNAME": "ib0", "GLOO_SOCKET_IFNAME": "eth0", "TP_SOCKET_IFNAME": "ib0"}
