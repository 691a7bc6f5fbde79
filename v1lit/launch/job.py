"""What is launched, whatever launches it: the recipe, on how many nodes, and what every process is told."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from v1lit.errors import OptionError

WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:+@%=/-]*")
"""What names of a cluster are made of: no spaces, quotes or `$`, and no `-` in front."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
"""Variables of the environment that name the network interface: of NCCL, gloo and torch's RPC."""
OURS = {
    "trainer.num_nodes": "--nodes says it",
    "trainer.devices": "--procs says it, or --gpus-per-node",
}
"""Keys of the recipe that the launcher sets."""


@dataclass(frozen=True)
class Job:
    """A run on one node or several, in which every device has a rank."""

    recipe: str
    """A file, or the bare name of a shipped recipe."""
    changes: Mapping[str, str]
    """Keys of the recipe and their values."""
    name: str
    """`run.name`."""
    nodes: tuple[int, int]
    """The fewest and the most nodes; mostly the same."""
    procs: int
    """Ranks per node."""
    port: int = 29500
    """On the first node, where all nodes meet."""
    max_restarts: int = 100
    """How often the ranks of a node are started again."""
    max_failures: int = 3
    """Starts from the same step that may fail."""
    join_timeout: int = 600
    """Until missing nodes are given up, seconds."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of all processes."""
    interface: str | None = None
    """Network interface for what ranks send each other; several with commas between."""

    def __post_init__(self) -> None:
        least, most = self.nodes
        if not 1 <= least <= most:
            raise OptionError("--nodes", f"{least}:{most}", "give a number from 1 on, or MIN:MAX")
        check_number("--procs", self.procs, 1)
        check_number("--port", self.port, 1, 65535)
        check_number("--max-restarts", self.max_restarts, 0)
        check_number("--max-failures", self.max_failures, 1)
        check_number("--join-timeout", self.join_timeout, 1)
        check_word("--interface", self.interface)
        check_text("RECIPE", self.recipe)
        if self.recipe.startswith("-") or not self.recipe.strip():
            raise OptionError("RECIPE", self.recipe, "give a file, or the name of a shipped recipe")
        for key, value in self.changes.items():
            check_text(f"--{key}", value)
            if key in OURS:
                raise OptionError(f"--{key}", value, OURS[key])
        for name, value in self.environment.items():
            check_text("--env", value)
            if not VARIABLE.fullmatch(name):
                raise OptionError(
                    "--env", f"{name}={value}", "give NAME=VALUE; names have letters, digits and _"
                )

    @property
    def is_elastic(self) -> bool:
        """Whether the run resumes with fewer nodes when one is lost."""
        return self.nodes[0] != self.nodes[1]

    @property
    def variables(self) -> dict[str, str]:
        """All that is put into the environment."""
        interface = dict.fromkeys(INTERFACES, self.interface) if self.interface else {}
        return {**interface, **self.environment}

    def node_words(self) -> list[str]:
        """The command of one node, but for what it must learn there: host, its number, name of the launch."""
        least, most = self.nodes
        given = {
            "nodes": f"{least}:{most}" if self.is_elastic else least,
            "procs": self.procs,
            "port": self.port,
            "max-restarts": self.max_restarts,
            "max-failures": self.max_failures,
            "join-timeout": self.join_timeout,
        }
        options = [f"--{option}={value}" for option, value in given.items()]
        return ["launch", "node", self.recipe, *options, *self.change_words()]

    def change_words(self) -> list[str]:
        """`--key=value` of all keys, with the name of the run, and resuming by itself."""
        changes = {**self.changes, "run.name": self.name}
        changes.setdefault("run.resume", "auto")
        return [f"--{key}={value}" for key, value in changes.items()]


def check_number(flag: str, number: int | None, least: int, most: int | None = None) -> None:
    """Raise OptionError, naming the flag, for a number that is out of bounds; None is allowed."""
    if number is not None and (number < least or (most is not None and number > most)):
        why = f"give {least} or more" if most is None else f"give a number from {least} to {most}"
        raise OptionError(flag, number, why)


def check_word(flag: str, text: str | None) -> None:
    """Raise OptionError, naming the flag, for a text that a job file cannot hold safely; None is allowed."""
    if text is not None and not WORD.fullmatch(text):
        allowed = "letters, digits and . _ - , : + @ % = / can be used in it, and not - as the first"
        raise OptionError(flag, text, allowed)


def check_words(flag: str, texts: Sequence[str]) -> None:
    """`check_word` of each."""
    for text in texts:
        check_word(flag, text)


def check_text(flag: str, text: str) -> None:
    """Raise OptionError, naming the flag, for a text that no process can be given."""
    if "\0" in text:
        raise OptionError(flag, text, "a NUL character cannot be used in it")
