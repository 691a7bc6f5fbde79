"""The store in which the ranks of a run tell each other things before, and beside, their process group.

It is the one that `init_process_group` uses: served by torchrun, else by rank 0. All waits are made in
Python, in short steps, so that Ctrl-C and signals work, which those inside of torch.distributed ignore.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from torch import distributed as dist

from v1lit.errors import FAILURE, one_line

AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""Whether torchrun serves the ranks' store: the same one for all starts."""
PAUSE = 0.05
"""Seconds between two looks at the store."""
ANSWER = timedelta(seconds=10)
"""How long a store that has been reached may take to answer."""


class RanksMissing(RuntimeError):  # noqa: N818 - it names a state, like FileNotFound
    """Some ranks of a run did not come, or did not answer, in time; the message names them."""

    exit_code = FAILURE


@dataclass(frozen=True)
class Place:
    """Where a process stands among the ranks of a run, and where all of them meet."""

    rank: int
    size: int
    """How many ranks there are, as far as this one knows."""
    address: str
    """`MASTER_ADDR`: the machine of the store."""
    port: int
    """`MASTER_PORT`."""
    host: str = field(default_factory=socket.gethostname)

    @property
    def name(self) -> str:
        return f"rank {self.rank} ({self.host})"

    @property
    def serves(self) -> bool:
        """Whether this process has the store; torchrun serves one of its own, and says so."""
        by_torchrun = os.environ.get(AGENT_STORE) == "True"
        same = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        return self.rank == 0 and not (by_torchrun and same == (self.address, str(self.port)))


class RankStore:
    """Values that all ranks can write and read, as JSON.

    Args:
        place: of this process.
        seconds: how long to wait for the store.

    Raises RanksMissing where nothing answers in time, or no longer.
    """

    def __init__(self, place: Place, seconds: float) -> None:
        self.place = place
        self.own_address = "" if place.serves else _await_port(place, seconds)
        self._store = self._connect()
        # A run that is started again in the same store is another one. In a store of its own it is not, and
        # there the nodes count their restarts unequally: one that others made it part of is none of its own.
        again = "TORCHELASTIC_RESTART_COUNT" if os.environ.get(AGENT_STORE) == "True" else ""
        names = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", again)
        self._prefix = "/".join(["v1lit", *(os.environ.get(name, "") for name in names)])
        self.own_address = self.own_address or _local_address(place)

    def _connect(self) -> dist.Store:
        place = self.place
        return dist.TCPStore(
            place.address, place.port, is_master=place.serves, wait_for_workers=False, multi_tenant=True,
            timeout=ANSWER,
        )  # fmt: skip

    def again(self) -> RankStore:
        """Another connection to the same store, for another thread."""
        other = object.__new__(RankStore)
        other.__dict__.update(self.__dict__)
        other._store = self._connect()
        return other

    def set(self, key: str, value: Any) -> None:
        with self._there():
            self._store.set(f"{self._prefix}/{key}", json.dumps(value))

    def add(self, key: str) -> int:
        """Count `key` up by one; returns the count."""
        with self._there():
            return int(self._store.add(f"{self._prefix}/{key}", 1))

    def get(self, key: str) -> Any:
        """The value of `key`; None where nobody has set it."""
        return self.of_ranks(key, [None])[0]

    def of_ranks(self, key: str, ranks: Iterable[int | None]) -> list[Any]:
        """The values of `key/RANK`, None for a rank that has not set it."""
        names = [f"{self._prefix}/{key}" + ("" if rank is None else f"/{rank}") for rank in ranks]
        store = self._store
        with self._there():
            if store.check(names):
                return [json.loads(value) for value in store.multi_get(names)]
            return [json.loads(store.get(name)) if store.check([name]) else None for name in names]

    @contextmanager
    def _there(self) -> Iterator[None]:
        """What torch says of a store that is gone, in words."""
        try:
            yield
        except dist.DistNetworkError as error:
            at = f"{self.place.address}:{self.place.port}"
            raise RanksMissing(
                f"the store at {at} is gone, and with it rank 0 or torchrun, says {self.place.name}\n"
                "look at the output of rank 0: it may have ended with an error"
            ) from error

    def wait_for_all(self, key: str, seconds: float) -> list[Any]:
        """The values of `key/RANK` of all ranks, in their order, once all have set it.

        Raises RanksMissing for those that have not in time.
        """
        ranks, end = range(self.place.size), time.monotonic() + seconds
        while None in (values := self.of_ranks(key, ranks)):
            if time.monotonic() > end:
                missing = [rank for rank in ranks if values[rank] is None]
                raise RanksMissing(f"{ranks_text(missing)} did not answer within {seconds:g} s")
            time.sleep(PAUSE)
        return values

    def wait_for(self, key: str, seconds: float, whom: str = "rank 0") -> Any:
        """The value of `key` once somebody has set it. Raises RanksMissing, naming `whom`."""
        end = time.monotonic() + seconds
        while (value := self.get(key)) is None:
            if time.monotonic() > end:
                raise RanksMissing(f"{whom} did not answer within {seconds:g} s")
            time.sleep(PAUSE)
        return value


def ranks_text(ranks: Iterable[int]) -> str:
    """Numbers of ranks in short: `rank 3`, `ranks 0-2, 5`."""
    numbers, runs = sorted(set(ranks)), list[list[int]]()
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = (str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(texts)}"


def _await_port(place: Place, seconds: float) -> str:
    """Wait until the store's port answers; returns the address of this machine on the way there."""
    end, last = time.monotonic() + seconds, ""
    while True:
        try:
            with socket.create_connection((place.address, place.port), timeout=2) as connection:
                return str(connection.getsockname()[0])
        except OSError as error:
            last = error.strerror or one_line(error)
        if time.monotonic() > end:
            raise RanksMissing(
                f"rank 0 is missing: nothing answers at MASTER_ADDR={place.address}, "
                f"MASTER_PORT={place.port} ({last}), and {place.name} has waited for {seconds:g} s\n"
                "start all nodes; look whether rank 0 has ended with an error, and whether a firewall or a "
                "wrong MASTER_ADDR is between"
            )
        time.sleep(4 * PAUSE)


def _local_address(place: Place) -> str:
    """The address at which others reach the machine that serves the store."""
    try:
        return socket.gethostbyname(place.address)
    except OSError:
        return place.address
