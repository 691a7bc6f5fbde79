"""Several nodes on one machine: as many launchers, which meet on the loopback interface."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType

from v1lit.processes import LAUNCHER

HOST = "127.0.0.1"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
POLL = 0.1
"""Seconds between two looks at the nodes."""


def run_local(least: int, most: int, command: Callable[[int], Sequence[str]]) -> int:
    """Run `command(number)` for every node and wait for all; returns the first exit code that is not 0.

    Signals are handed to the nodes, which wait for their ranks. When nodes have failed and fewer than
    `least` are left, these are told to stop.
    """
    environment = {**os.environ, LAUNCHER: str(os.getpid())}
    nodes: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, frame: FrameType | None = None) -> None:
        for node in nodes:
            with suppress(ProcessLookupError):
                node.send_signal(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number in range(most):
            # In sessions of their own: Ctrl-C reaches them from here alone, and once.
            nodes.append(subprocess.Popen(command(number), env=environment, start_new_session=True))
        for number in SIGNALS:
            signal.signal(number, hand_on)
        return _wait(nodes, least, hand_on)
    finally:
        hand_on(signal.SIGTERM)
        for node in nodes:
            node.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def this_python(words: Sequence[str]) -> list[str]:
    """The command `v1lit *words` of this installation."""
    return [sys.executable, "-m", "v1lit.cli.main", *words]


def _wait(nodes: list[subprocess.Popen[bytes]], least: int, hand_on: Callable[[int], None]) -> int:
    first, told = 0, False
    while True:
        codes = [node.poll() for node in nodes]
        failed = [code for code in codes if code]
        if failed and not first:
            first = 128 - failed[0] if failed[0] < 0 else failed[0]
        if None not in codes:
            return first if len(nodes) - len(failed) < least else 0
        if len(nodes) - len(failed) < least and not told:
            hand_on(signal.SIGTERM)
            told = True
        time.sleep(POLL)
