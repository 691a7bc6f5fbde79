"""What tests of job files share: a job, and values that must not do anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from v1lit.launch.job import Job


@pytest.fixture
def a_job() -> Callable[..., Job]:
    """Makes a job on two nodes of four ranks, with other options where they are given."""

    def make(**options: Any) -> Job:
        given: dict[str, Any] = {
            "recipe": "tiny_qwen", "changes": {}, "name": "it", "nodes": (2, 2), "procs": 4
        }  # fmt: skip
        return Job(**{**given, **options})

    return make
