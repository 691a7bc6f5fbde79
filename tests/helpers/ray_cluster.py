"""A Ray cluster of nodes that all are this machine, with GPUs that are only counted."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from helpers.launched_runs import environment
from helpers.sweeps import until


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Node:
    """A node; all that it runs for Ray is one group of processes.

    Args:
        words: of `ray start`.
        output: file that gets what it prints.
    """

    def __init__(self, words: list[str], output: Path) -> None:
        program = Path(sys.executable).parent / "ray"
        common = ["--block", "--disable-usage-stats", "--object-store-memory=80000000"]
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [str(program), "start", *common, *words],
                env=environment(RAY_USAGE_STATS_ENABLED="0"), stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + 60
        while "This command will now block" not in (said := output.read_text()):
            assert self.process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.1)

    @property
    def raylet(self) -> int:
        """The process that its workers are children of, which they tell what they start."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                program = path.read_bytes().split(b"\0")[0]
                group = os.getpgid(int(path.parent.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
            if program.endswith(b"/raylet") and group == self.process.pid:
                return int(path.parent.name)
        raise AssertionError("the node has no raylet")

    def kill(self) -> None:
        """End it as if its machine were switched off."""
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class RayCluster:
    """A head and what is added to it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: paths of sockets lie in it
        self.address = f"127.0.0.1:{free_port()}"
        port = self.address.rpartition(":")[2]
        self.nodes: list[Node] = []
        self.add(
            "--head", f"--port={port}", "--num-cpus=2", "--num-gpus=2", "--include-dashboard=false",
            f"--temp-dir={self.folder}", f"--ray-client-server-port={free_port()}",
        )  # fmt: skip

    def add(self, *words: str) -> Node:
        """Start a node."""
        self.nodes.append(Node(list(words), self.folder / f"node{len(self.nodes)}.txt"))
        return self.nodes[-1]

    def add_worker(self, cpus: int) -> Node:
        """Start a node that joins the head."""
        return self.add(f"--address={self.address}", f"--num-cpus={cpus}", "--num-gpus=0")

    def close(self) -> None:
        """End all nodes."""
        for node in reversed(self.nodes):
            node.kill()
        until(lambda: not any(self._left()), "workers end with their nodes")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _left(self) -> Iterator[bool]:
        """For every process whether it is one of the cluster."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                yield str(self.folder).encode() in path.read_bytes()
