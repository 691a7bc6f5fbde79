"""Whether every machine of a run can be reached from every other one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from v1lit.cluster.meeting import Meeting
from v1lit.errors import one_line

TIMEOUT = 5.0
"""Seconds for a connection."""


@contextmanager
def reachable() -> Iterator[int]:
    """A port of this machine that takes connections, and does nothing with them."""
    with socket.create_server(("", 0), backlog=128) as server:
        yield int(server.getsockname()[1])


def unreachable(meeting: Meeting) -> list[str]:
    """The other machines that cannot be reached from here, with the reasons; only their first ranks ask."""
    machines = meeting.machines
    if meeting.place.rank not in machines or len(machines) == 1:
        return []
    others = [rank for rank in machines if rank != meeting.place.rank]
    with ThreadPoolExecutor(min(32, len(others))) as threads:
        return [problem for problem in threads.map(lambda rank: _problem(meeting, rank), others) if problem]


def _problem(meeting: Meeting, rank: int) -> str:
    here = meeting.ranks[rank]
    try:
        socket.create_connection((here.address, here.port), timeout=TIMEOUT).close()
    except OSError as error:
        why = error.strerror or one_line(error)
        return f"{meeting.name(rank)} at {here.address} ({why}): look at firewall and interface"
    return ""
