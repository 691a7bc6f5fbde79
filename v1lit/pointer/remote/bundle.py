"""One file of the source of several modules: a module, and what it uses of v1lit, definition by definition.

Nothing is written again: functions, classes and constants are cut out as they stand. What a definition uses
is found by its names, which mean the same everywhere in the file, or the file is not made.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType

PACKAGE = "v1lit"


class BundleError(RuntimeError):
    """What a module uses cannot stand in one file."""


@dataclass(frozen=True)
class Source:
    """A module's text, and what every name at its top level is."""

    module: str
    lines: list[str]
    tree: ast.Module

    @cached_property
    def definitions(self) -> dict[str, ast.stmt]:
        """The statement that defines a name: a function, a class, or an assignment."""
        found: dict[str, ast.stmt] = {}
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[node.name] = node
            elif isinstance(node, ast.Assign):
                names = [part for target in node.targets for part in ast.walk(target)]
                found |= {part.id: node for part in names if isinstance(part, ast.Name)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = node
        return found

    @cached_property
    def imports(self) -> dict[str, ast.Import | ast.ImportFrom]:
        """The statement that imports a name, those for type checkers left out."""
        nodes = [node for node in self.tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        return {
            (alias.asname or alias.name.partition(".")[0]): node for node in nodes for alias in node.names
        }

    def text(self, node: ast.stmt) -> str:
        """A definition as it stands, with its decorators, the comment before and the docstring behind it."""
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        while self.lines[first - 2].startswith("#"):
            first -= 1
        behind = self.tree.body[self.tree.body.index(node) + 1 :]
        last = node.end_lineno or node.lineno
        if isinstance(node, ast.Assign | ast.AnnAssign) and behind and _is_text(behind[0]):
            last = behind[0].end_lineno or last
        return "\n".join(self.lines[first - 1 : last])


@dataclass
class _Bundle:
    """What is in the file so far."""

    texts: dict[tuple[str, str], str] = field(default_factory=dict)
    """Definitions by module and first name, those that others need before them."""
    imports: dict[str, str] = field(default_factory=dict)
    """Statements of imports by the name that they bind."""
    owners: dict[str, object] = field(default_factory=dict)
    """What every name stands for."""
    begun: set[tuple[str, str]] = field(default_factory=set)

    def add(self, module: str, name: str) -> None:
        """Put in what a name of a module stands for, and before it what that uses."""
        source = read(module)
        if (node := source.definitions.get(name)) is not None:
            self._define(source, name, node)
        elif (statement := source.imports.get(name)) is not None:
            self._import(source, name, statement)
        elif not hasattr(builtins, name):
            raise BundleError(f"{module} uses {name}, which it neither defines nor imports")

    def _define(self, source: Source, name: str, node: ast.stmt) -> None:
        key = (source.module, str(node.lineno))
        self._claim(source.module, name)
        if key in self.begun:
            return
        self.begun.add(key)
        for used in dict.fromkeys(_used(node)):
            if used in source.definitions or used in source.imports:
                self.add(source.module, used)
        for used in dict.fromkeys(_named(node)):  # in annotations, for who reads them
            statement = source.imports.get(used)
            if statement is not None and not _is_own(statement):
                self._import(source, used, statement)
        self.texts[key] = source.text(node)

    def _import(self, source: Source, name: str, node: ast.Import | ast.ImportFrom) -> None:
        alias = next(one for one in node.names if name in (one.asname, one.name.partition(".")[0]))
        if _is_own(node):
            if alias.asname not in (None, alias.name):
                raise BundleError(f"{source.module} renames {alias.name}, which is called so in the file too")
            self.add(str(getattr(node, "module", None)), alias.name)
            return
        self._claim(source.module, name)
        of = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
        self.imports.setdefault(name, f"{of}import {ast.unparse(alias)}")

    def _claim(self, module: str, name: str) -> None:
        thing = vars(sys.modules[module])[name]
        if self.owners.setdefault(name, thing) is not thing:
            raise BundleError(f"{name} of {module} is another thing than the {name} that is in the file")


def bundle(template: ModuleType, head: str) -> str:
    """The text of one file with all of a module and what it uses of v1lit; `head` is its docstring.

    Raises BundleError where names mean several things, or are imported inside of functions.
    """
    made, source = _Bundle(), read(template.__name__)
    for name in source.definitions:
        made.add(source.module, name)
    imports = sorted(set(made.imports.values()), key=lambda line: (line.startswith("from"), line))
    top = [f'"""{head}"""', "from __future__ import annotations", "\n".join(imports)]
    return "\n\n\n".join(["\n\n".join(top), *made.texts.values()]) + "\n"


@cache
def read(module: str) -> Source:
    """The source of a module that has been imported."""
    file = sys.modules[module].__file__
    assert file is not None
    text = Path(file).read_text(encoding="utf-8")
    return Source(module, text.splitlines(), ast.parse(text))


def _used(node: ast.AST) -> Iterator[str]:
    """Names that a definition needs when it runs: annotations are texts, and need none."""
    if isinstance(node, ast.Import | ast.ImportFrom) and _is_own(node):
        raise BundleError(f"{ast.unparse(node)} stands inside of a definition")
    if isinstance(node, ast.Name):
        yield node.id
    skipped = {"annotation", "returns"}
    for name, value in ast.iter_fields(node):
        if name not in skipped:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _used(child)


def _named(node: ast.AST) -> Iterator[str]:
    return (part.id for part in ast.walk(node) if isinstance(part, ast.Name))


def _is_own(node: ast.Import | ast.ImportFrom) -> bool:
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
    return any(name.partition(".")[0] == PACKAGE for name in names)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
