"""Ranks that are threads of one process, with a store of torch.distributed between them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from v1lit.cluster.store import Place


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def places(size: int, hosts: str = "ab") -> list[Place]:
    """Places of so many ranks, by turns on these hosts, that meet here."""
    port = free_port()
    return [Place(rank, size, "127.0.0.1", port, f"host-{hosts[rank % len(hosts)]}") for rank in range(size)]


def on_ranks(act: Callable[[Place], Any], ranks: list[Place]) -> list[Any]:
    """What `act` returned, or raised, on each of these ranks."""

    def outcome(place: Place) -> Any:
        try:
            return act(place)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(outcome, ranks))
