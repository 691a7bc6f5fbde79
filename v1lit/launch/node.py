"""What runs on every node: one process that starts a rank per device, and starts all again when one dies.

It is an agent of torch.distributed.elastic, as in torchrun, which differs in what signals and exit codes
mean: a signal is handed to the ranks, which save a checkpoint at the end of their step and stop, and those
are waited for; ranks that stopped because they were told to, or that would fail again in the same way, are
not started again.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.elastic.utils.store import barrier

from v1lit.errors import FAILURE, GAVE_UP, MISTAKE
from v1lit.processes import LAUNCHER

STOPPED = (130, 143)
"""Exit codes of ranks that were told to stop, by Ctrl-C or by a signal, and left a checkpoint."""
FINAL = (MISTAKE, GAVE_UP)
"""Exit codes of ranks that would end in the same way if they were started again."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SECONDS_TO_END = 30
"""Of a node whose rank died: until the other ranks, which are told to stop at once, are killed.

That is the time which torch.distributed.elastic has for it.
"""
SECONDS_WITHOUT_FIRST = 30
"""Of a node whose ranks have ended: until it ends where nothing answers on the first node any more."""
DAY = 86400


@dataclass(frozen=True)
class Node:
    """One node of a launch, as all its nodes describe themselves."""

    least: int
    """Nodes without which nothing starts."""
    most: int
    """Nodes that are waited for, a moment longer, once there are enough."""
    procs: int
    """Ranks on this node."""
    host: str
    """Name or address of the first node, where the others meet."""
    port: int
    """On that node."""
    number: int
    """Of this node, from 0 on."""
    launch: str
    """Name of the launch: that of all its nodes, and of nobody else who meets at the same place."""
    max_restarts: int
    """How often ranks are started again on this node."""
    seconds_to_join: int = 600
    """Until a meeting to which too few nodes came is given up, seconds."""


class EndedError(Exception):
    """The ranks of this node have ended for good, with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


Note = Callable[[int, str], None]
"""Called with the number of a rank that was killed, and what is known about it."""


class Agent(LocalElasticAgent):
    """Starts the ranks of one node, watches them, and decides what their end means.

    Args:
        spec: the command of a rank; each start adds the number of nodes to it.
        node: where it runs.
        note: is told of ranks that were killed.
    """

    def __init__(self, spec: WorkerSpec, node: Node, note: Note) -> None:
        # Ranks end at different times: the first one makes the report.
        super().__init__(spec, DefaultLogsSpecs(), exit_barrier_timeout=DAY)
        self.node, self.note = node, note
        self.command = spec.args
        self.asked: int | None = None
        self._ranks: list[int] = []
        self._starting = self._started = False
        self._failures = 0

    @property
    def alone(self) -> bool:
        """Whether ranks were started here, and all have ended."""
        return self._started and not any(_runs(pid) for pid in self._ranks)

    def take(self, number: int, frame: FrameType | None = None) -> None:
        """Hand a signal to the ranks; where there are none, or by a second Ctrl-C, end."""
        again = self.asked is not None and number == signal.SIGINT
        self.asked = self.asked or number
        for pid in self._ranks:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if again or not (self._ranks or self._starting):
            raise EndedError(_code_of(number))

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        nodes = f"--trainer.num_nodes={worker_group.group_world_size}"
        worker_group.spec.args = (*self.command, nodes)
        self._starting = True
        pids = super()._start_workers(worker_group)
        self._ranks, self._starting, self._started = list(pids.values()), False, True
        if self.asked is not None:
            self.take(self.asked)
        return pids

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        super()._stop_workers(worker_group)
        self._ranks = []
        if self.asked is not None:
            raise EndedError(_code_of(self.asked))

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state is not WorkerState.FAILED:
            return result
        # Those that follow were told to stop when it died.
        rank, failure = next(iter(result.failures.items()))
        code = failure.exitcode
        if self.asked is not None:
            raise EndedError(_code_of(self.asked) if code in STOPPED or code < 0 else code)
        if code in FINAL or (code in STOPPED and self.node.least == self.node.most):
            raise EndedError(code)
        if code < 0:
            why = "as the system does when memory is used up" if code == -signal.SIGKILL else "from outside"
            self.note(rank, f"rank {rank} was ended by {signal.Signals(-code).name}, {why}")
        self._failures += 1
        most = self.node.max_restarts
        again = f"start {self._failures + 1} follows"
        what = again if self._failures <= most else f"--max-restarts={most} allows no more"
        _say(f"node {self.node.number}: rank {rank} ended with {_named(code)}; {what}")
        return result


# At every end of a rank it writes what is told here in other words.
logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)


def run_node(node: Node, command: Sequence[str], note: Note) -> int:
    """Run `command` once per rank on this node until it has ended for good; returns its exit code.

    That is 0 when all ranks are done, and else that of the rank which ended first: 128 and the signal's
    number if it was killed.
    """
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=f"{node.host}:{node.port}",
        run_id=node.launch,
        min_nodes=node.least,
        max_nodes=node.most,
        local_addr=own_address(node),
        is_host=node.number == 0,
        join_timeout=node.seconds_to_join,
        read_timeout=node.seconds_to_join,
    )
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else ranks started again meet the dead ones
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # the others are taken here
    os.environ[LAUNCHER] = str(os.getpid())
    before = {number: signal.signal(number, _end_at_once) for number in SIGNALS}
    try:
        program, *rest = (word.replace("$", "$$") for word in command)  # torch puts in values for `$name`
        spec = WorkerSpec(
            role="rank",
            local_world_size=node.procs,
            entrypoint=program,
            args=tuple(rest),
            rdzv_handler=get_rendezvous_handler(parameters),
            max_restarts=node.max_restarts,
            local_addr=parameters.local_addr,
        )
        agent = Agent(spec, node, note)
        for number in SIGNALS:
            signal.signal(number, agent.take)
        if node.number > 0:
            threading.Thread(target=_end_without_first, args=(agent, node), daemon=True).start()
        return _outcome(agent, node)
    except RendezvousConnectionError as error:
        _say(_nobody(node, f"nothing answers at {node.host}:{node.port}: {error.__cause__ or error}"))
        return FAILURE
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(agent: Agent, node: Node) -> int:
    handler = agent.get_worker_group().spec.rdzv_handler
    try:
        result = agent.run()
        if result is None:
            _say(_nobody(node, "the others have enough nodes without it"))
            return 0
        handler.shutdown()
        first = next(iter(result.failures.values()), None)
        return 0 if first is None else _code_of(-first.exitcode) if first.exitcode < 0 else first.exitcode
    except EndedError as ended:
        if agent.asked is None or node.least == node.most:  # else the other nodes run on without this one
            _wait_for_others(agent)
            handler.shutdown()
        return ended.code
    except RendezvousTimeoutError:
        wanted = node.least if node.least == node.most else f"{node.least} to {node.most}"
        _say(
            _nobody(node, f"{wanted} nodes did not all come to {node.host}:{node.port} within "
                          f"{node.seconds_to_join} s; --join-timeout waits longer")
        )  # fmt: skip
    except RendezvousClosedError:
        _say(_nobody(node, "the launch has ended on another node, which says why"))
    except RendezvousError as error:
        if agent.asked is not None:
            return _code_of(agent.asked)
        _say(_nobody(node, f"the first node, {node.host}, is gone: {error}"))
    return FAILURE


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """What a signal does until there is an agent."""
    raise SystemExit(_code_of(number))


def _end_without_first(agent: Agent, node: Node) -> None:
    """End this process, from a thread, when the way to the first node is lost and its ranks have ended.

    torch asks that node, without a limit in time, as long as no packet says that it is gone.
    """
    answered = time.monotonic()
    while True:
        time.sleep(SECONDS_WITHOUT_FIRST / 10)
        with suppress(OSError):
            if agent.alone:
                socket.create_connection((node.host, node.port), timeout=5).close()
            answered = time.monotonic()
        silent = time.monotonic() - answered
        if silent >= SECONDS_WITHOUT_FIRST:
            where = f"{node.host}:{node.port}"
            _say(
                _nobody(node, f"the ranks have ended, and nothing has answered at {where} for {silent:.0f} s")
            )
            os._exit(FAILURE)


def _runs(pid: int) -> bool:
    """Whether a process that this one has started runs; it stays to be waited for."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def _wait_for_others(agent: Agent) -> None:
    """Stay until the ranks of all nodes have ended: on the first node is what the others meet by."""
    group = agent.get_worker_group()
    store: Any = group.store  # None before they first met
    nodes: Any = group.group_world_size
    if store is not None:
        with suppress(Exception):  # whoever is gone has said why
            barrier(store, nodes, "v1lit/ended", SECONDS_TO_END)


def own_address(node: Node) -> str:
    """The address of this node by which the first one, and so all others, can reach it.

    On the first node itself that is the name which the others call it by: its own name may lead to
    the loopback interface.
    """
    if node.number == 0:
        return node.host
    with suppress(OSError):
        kind, _, _, _, place = socket.getaddrinfo(node.host, node.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.connect(place)  # sends nothing
            return str(probe.getsockname()[0])
    return socket.getfqdn()


def _code_of(number: int) -> int:
    """Exit code after a signal; SIGUSR1 asks for the same as SIGTERM."""
    return 128 + (signal.SIGTERM if number == signal.SIGUSR1 else number)


def _named(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _nobody(node: Node, why: str) -> str:
    return f"error: node {node.number}, {socket.gethostname()}: {why}"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
