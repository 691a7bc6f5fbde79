"""What a recipe says of its stages: `stages: {NAME: {...}, ...}`, changes for each, in their order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v1lit.cli.errors import UserError
from v1lit.errors import name_allowed

STAGES, STAGE, BEGIN_FROM = "stages", "run.stage", "model.begin_from"
OF_ALL = ("run.name", "run.folder", "run.resume", STAGE)
"""Keys that no stage has for itself."""
FOLLOWED = "V1LIT_STAGES"
"""In the environment of a stage that others follow in the same command: it checks them before it begins."""
Pairs = list[tuple[str, str]]
"""Keys and their values, as they were typed."""
Trail = tuple[Path, ...]


@dataclass(frozen=True)
class Stage:
    """One of the stages of a recipe."""

    name: str
    names: tuple[str, ...]
    """Of all stages, in their order."""

    @property
    def number(self) -> int:
        """From 1 on."""
        return self.names.index(self.name) + 1

    @property
    def is_last(self) -> bool:
        """Whether no other one begins from what it leaves."""
        return self.number == len(self.names)

    @property
    def folder(self) -> str:
        """Its name in the folder of the run."""
        return f"{self.number}-{self.name}"


class StageEntries:
    """The stages of a recipe, and their changes: those of its files, in order, and those that were typed."""

    def __init__(self) -> None:
        self.changes: dict[str, list[tuple[dict[Any, Any], Trail]]] = {}
        """By stage, mappings with the trail of files that led to each."""
        self.typed: dict[str, Pairs] = {}

    def take(self, given: Any, where: str, trail: Trail = ()) -> None:
        """Note what a file has under `stages`; an empty mapping takes away what files before it have.

        Raises UserError, which begins with `where`, for what are no stages.
        """
        if not isinstance(given, dict):
            raise UserError(f"{where}{STAGES} is {given!r}; give a mapping of names to changes of the recipe")
        if not given:
            self.changes.clear()
        for name, changes in given.items():
            self._check(name, changes, f"{where}{STAGES}.{name}")
            before = self.changes.setdefault(name, [])
            before[:] = [*before, (changes, trail)] if changes else []

    @staticmethod
    def _check(name: Any, changes: Any, key: str) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name):
            raise UserError(f"{key}: a name has letters, digits, '_' and '-'; in quotes it is a text")
        if not isinstance(changes, dict | None):
            raise UserError(f"{key} is {changes!r}; give a mapping of changes, which may be empty")
        run = (changes or {}).get("run")
        wrong = [one for one in ("base", STAGES) if one in (changes or {})]
        wrong += [one for one in OF_ALL if isinstance(run, dict) and one.removeprefix("run.") in run]
        if wrong:
            raise UserError(f"{key}.{wrong[0]}: it is of all stages; give it outside of {STAGES}")

    def take_typed(self, pairs: Pairs, read: Callable[[str], Any]) -> Pairs:
        """Note what was typed for single stages, and return what was for all.

        Args:
            pairs: what was typed.
            read: makes a value of a text.

        Raises UserError for unknown stages, and for keys that are of all.
        """
        rest: Pairs = []
        for key, text in pairs:
            top, _, below = key.partition(".")
            name, _, inner = below.partition(".")
            if top != STAGES:
                rest.append((key, text))
            elif name and name not in self.changes:
                raise UserError(f"--{key}: {STAGES} has no {name!r}; {name_allowed(name, self.changes)}")
            elif not inner:
                value = read(text)
                self.take({name: value} if name else value, "--")
            elif inner in OF_ALL:
                raise UserError(f"--{key}: it is of all stages; give --{inner}")
            else:
                self.typed.setdefault(name, []).append((inner, text))
        return rest

    def stage(self, name: str | None, file: str) -> Stage | None:
        """The stage of this name; None without one, where there are no stages.

        Raises UserError for a name that no stage has, and for none where there are stages.
        """
        names = tuple(self.changes)
        if not names and name is None:
            return None
        if not names:
            raise UserError(f"{STAGE} is {name!r}, but {file} has no stages\nleave it out")
        if name is None:
            raise UserError(
                f"{file} has the stages {', '.join(names)}, and this is done with one\n"
                f"name it, such as --{STAGE}={names[0]}"
            )
        if name not in names:
            raise UserError(f"{STAGE} is {name!r}; {name_allowed(name, names)}")
        return Stage(name, names)

    def typed_of(self, stage: Stage | None, common: Pairs) -> Iterator[tuple[str, str]]:
        """What was typed for a stage: for all, then for it alone. What all begin from, the first one does."""
        for key, text in common:
            if key != STAGE and not (key == BEGIN_FROM and stage is not None and stage.number > 1):
                yield key, text
        if stage is not None:
            yield from self.typed.get(stage.name, ())
