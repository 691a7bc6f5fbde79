"""Forked processes of a test."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked")
PATIENCE = 120
"""Seconds after which a hanging test ends as failed; nothing takes a tenth of it."""


def run_all(function: Callable[..., Any], argument_lists: list[tuple[Any, ...]]) -> list[Any]:
    """Call a function in forked processes, all at the same time; their results."""
    fork = multiprocessing.get_context("fork")
    pipes, processes = [], []
    for arguments in argument_lists:
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=_send_result, args=(sender, function, arguments), daemon=True)
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    try:
        return [receive(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join(PATIENCE)


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any, nodes: int = 1) -> list[Any]:
    """Call a function on all ranks of one run, which find each other as those of torchrun; their results."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = [(rank, size, nodes, port, function, arguments) for rank in range(size)]
    return run_all(_as_rank, ranks)


def _as_rank(
    rank: int, size: int, nodes: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    on_node = size // nodes
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank % on_node),
        "GROUP_RANK": str(rank // on_node),
        "LOCAL_WORLD_SIZE": str(on_node),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    return function(*arguments)


def _send_result(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        sender.send((True, function(*arguments)))
    except BaseException as error:
        sender.send((False, "".join(traceback.format_exception(error))))


def receive(pipe: Connection) -> Any:
    """What a process sends, within `PATIENCE`."""
    assert pipe.poll(PATIENCE), "the process hangs"
    good, value = pipe.recv()
    assert good, value
    return value
