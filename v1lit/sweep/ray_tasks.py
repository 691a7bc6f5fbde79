"""Trials as tasks of a Ray cluster, which end with their driver."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from v1lit.errors import one_line
from v1lit.sweep.executor import ExecutorError, Job, end_all
from v1lit.sweep.ray_trial import STOPPED, run_trial

LOST = 137
"""Exit code of a trial that Ray has lost, with its worker or node: that of SIGKILL."""
SECONDS_BETWEEN_LOOKS = 2.0
"""At the nodes of the cluster."""
CALLS_TO_END = 50
"""To cancel a task, after which Ray kills its worker."""
SECONDS_TO_ANSWER = 10.0
"""For whoever listens at the address of a cluster; Ray itself would try for ten minutes."""
ADVICE = (
    "folder and Python, with v1lit, must be the same on all nodes, and locks (flock) hold between them, as "
    "on NFS 4; the same command resumes the sweep"
)


class RayTask:
    """A trial that is a task.

    Args:
        cluster: that runs it.
        job: the trial.
        reference: by which Ray knows the result of the task.
        group: that holds the GPUs of the trial, where there is one.
    """

    def __init__(self, cluster: RayTasks, job: Job, reference: Any, group: Any) -> None:
        self.cluster, self.job, self.reference, self.group = cluster, job, reference, group
        self.code: int | None = None
        self._asked = 0

    @property
    def where(self) -> Mapping[str, object]:
        """The number of the task, as `ray list tasks` has it."""
        return {"task": self.reference.task_id().hex()}

    def poll(self) -> int | None:
        """Its exit code; None while it waits or runs.

        Raises ExecutorError where the node can run no trial, or no node of the cluster has room for one.
        """
        import ray

        if self.code is not None:
            return self.code
        if not ray.wait([self.reference], timeout=0)[0]:
            self.cluster.look()
            return None
        said = self._result()
        self.code = LOST if isinstance(said, str) else said
        if self.group is not None:
            ray.util.remove_placement_group(self.group)
        if isinstance(said, str) and not self.cluster.closing:
            raise ExecutorError(f"a node of the Ray cluster {said}\n{ADVICE}")
        return self.code

    def stop(self) -> None:
        """Take it out of the queue, or have it save and end."""
        if self.code is None and not self._asked:
            self._asked = 1
            self._cancel()

    def kill(self) -> None:
        """End it now: its task does, or if that says nothing to several calls, Ray ends the task."""
        if self.code is None:
            self._asked += 1
            self._cancel(force=self._asked > CALLS_TO_END)

    def _cancel(self, force: bool = False) -> None:
        import ray

        ray.cancel(self.reference, force=force)

    def _result(self) -> int | str:
        import ray

        try:
            said: int | str = ray.get(self.reference)
            return said
        except ray.exceptions.TaskCancelledError:
            return STOPPED
        except ray.exceptions.RayTaskError as error:  # of ours, before or beside the trial
            return f"cannot run trials: {str(error).strip().splitlines()[-1]}"
        except ray.exceptions.RayError as error:
            with self.job.output.open("a", encoding="utf-8") as output:
                output.write(f"error: lost by Ray: {one_line(error)}\n")
            return LOST


class RayTasks:
    """Runs each trial as a task on a cluster that is there.

    Nothing that Ray keeps is relied on: tasks of a driver that was killed are ended by Ray, and the trial's
    lock, taken on its node, keeps others away until it has ended.

    Args:
        folder: of the sweep, which all nodes see.
        address: of the cluster, HOST:PORT, or `auto` for the one of this machine.
        jobs: tasks that wait or run at a time.
        cpus: of one trial, as Ray counts them.
        gpus: of one trial, or the share of one.
        threads: `OMP_NUM_THREADS` of one trial.
        wait: seconds after which a cluster is given up that has no node for a trial.
    """

    def __init__(
        self, folder: Path, address: str, jobs: int, cpus: float, gpus: float, threads: int, wait: float
    ) -> None:
        self.folder, self.address, self.jobs = folder.absolute(), address, jobs
        self.needs = {"CPU": cpus, "GPU": gpus}
        self.threads, self.wait = threads, wait
        self.closing = False
        self.tasks: list[RayTask] = []
        self._next = 0.0
        self._had_room = time.monotonic()

    def connect(self) -> None:
        """Join the cluster; raises ExecutorError where that fails."""
        _use_token()
        try:
            import ray
        except ImportError:
            raise ExecutorError('--executor=ray needs Ray: pip install "v1lit[ray]"') from None
        try:
            if self.address != "auto":
                host, _, port = self.address.rpartition(":")
                socket.create_connection((host, int(port)), SECONDS_TO_ANSWER).close()
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ExecutorError(
                f"no Ray cluster can be joined at --address={self.address}: {one_line(error)}\n"
                "start v1lit on a node of the cluster, with the token of one that has it (RAY_AUTH_MODE="
                "token), or a cluster here: ray start --head"
            ) from error
        self._had_room = time.monotonic()

    def has_room(self) -> bool:
        """Whether fewer than `jobs` of them wait or run."""
        self.tasks = [task for task in self.tasks if task.code is None]
        return len(self.tasks) < self.jobs

    def start(self, job: Job) -> RayTask:
        """Hand a trial to Ray."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        options: dict[str, Any] = {"num_cpus": self.needs["CPU"], "num_gpus": self.needs["GPU"]}
        group = None
        if self.needs["GPU"] > 1:
            group = ray.util.placement_group([self.needs], strategy="STRICT_PACK", name=job.name)
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group)
        task = ray.remote(run_trial).options(max_retries=0, name=job.name, **options)
        words = (str(Path.cwd()), str(self.folder), job.name, list(job.command), self.threads)
        self.tasks.append(RayTask(self, job, task.remote(*words), group))
        return self.tasks[-1]

    def find(self, name: str) -> None:
        """None: a trial ends with its driver."""

    def close(self) -> None:
        """Have all that still runs save and end, and leave the cluster."""
        import ray

        self.closing = True
        end_all([task for task in self.tasks if task.code is None])
        ray.shutdown()

    def look(self) -> None:
        """From time to time, see whether any node could hold a trial if nothing else ran.

        Raises ExecutorError where none could for longer than `wait` seconds; the cluster may grow meanwhile.
        """
        import ray

        now = time.monotonic()
        if self.closing or now < self._next:
            return
        self._next = now + SECONDS_BETWEEN_LOOKS
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(all(node.get(kind, 0.0) >= need for kind, need in self.needs.items()) for node in nodes):
            self._had_room = now
        elif now - self._had_room > self.wait:
            have = "; ".join(dict.fromkeys(map(_counted, nodes))) or "nothing"
            raise ExecutorError(
                f"a trial asks for {_counted(self.needs)}, and no node of the Ray cluster has that; its "
                f"nodes have: {have}\ngive fewer --threads or --gpus-per-trial, or a cluster that grows a "
                "longer --wait"
            )


def _use_token() -> None:
    """Have Ray show its token where there is one, as `ray start` does by itself."""
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if named or (Path.home() / ".ray/auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _counted(resources: Mapping[str, float]) -> str:
    cpus, gpus = (resources.get(kind, 0.0) for kind in ("CPU", "GPU"))
    return f"{cpus:g} CPU{'s' * (cpus != 1)} and {gpus:g} GPU{'s' * (gpus != 1)}"
