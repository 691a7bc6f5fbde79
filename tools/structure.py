"""How the package is built, in numbers: its rooms, floors, circles and sizes.

    python tools/structure.py [FOLDER]      (by default the `v1lit/` of this checkout)

A *room* is a module or a folder directly in a package. A room stands a *floor* above the highest room that it
imports. A *circle* is rooms, or modules, that import each other; then there is no order in which to read
them. Imports inside functions and below `TYPE_CHECKING` count like all others: the interpreter forgives them
later, a reader does not. `tests/test_structure.py` holds the limits.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

Graph = Mapping[str, Collection[str]]
"""Names, and for each of them those that it imports."""


@dataclass(frozen=True)
class Size:
    """How long something is, in lines, and where it stands."""

    lines: int
    where: str

    def __str__(self) -> str:
        return f"{self.lines:5}  {self.where}"


# ---------------------------------------------------------------------- what imports what


def module_name(path: Path, root: Path) -> str:
    """`v1lit.data.shards` for both `v1lit/data/shards.py` and `v1lit/data/shards/__init__.py`."""
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_modules(root: Path) -> dict[str, Path]:
    """All modules below a package's folder: name -> file."""
    return {module_name(path, root): path for path in sorted(root.rglob("*.py"))}


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names that a module imports, wherever in it the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_graph(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module -> those modules of the same package that it imports."""
    return {
        name: {module_of(target, modules) for target in imports(_parsed(path))} - {"", name}
        for name, path in modules.items()
    }


def module_of(name: str, modules: Collection[str]) -> str:
    """The longest beginning of a dotted name that is a module; empty where none is."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def rooms(graph: Graph, package: str) -> dict[str, set[str]]:
    """What the rooms of a package import of each other. Its own `__init__` is the door, and no room."""

    def room(module: str) -> str:
        inside = module.startswith(f"{package}.")
        return module.removeprefix(f"{package}.").partition(".")[0] if inside else ""

    found: dict[str, set[str]] = {}
    for module, targets in graph.items():
        if here := room(module):
            found.setdefault(here, set()).update({room(target) for target in targets} - {"", here})
    return found


# ---------------------------------------------------------------------- floors and circles


def circles(graph: Graph) -> list[list[str]]:
    """Groups of names that can be reached from each other, largest first (Tarjan 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    waiting: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        waiting.append(name)
        for target in graph[name]:
            if target not in number:
                visit(target)
            if target in waiting:
                lowest[name] = min(lowest[name], lowest[target])
        if lowest[name] == number[name]:
            cut = waiting.index(name)
            found.append(sorted(waiting[cut:]))
            del waiting[cut:]

    for name in graph:
        if name not in number:
            visit(name)
    return sorted((group for group in found if len(group) > 1), key=lambda group: (-len(group), group))


def floors(graph: Graph) -> dict[str, int]:
    """The floor of every name, from 1; those of one circle stand on one floor."""
    group = {name: min(names) for names in circles(graph) for name in names}
    found: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in found:
            members = [other for other in graph if group.get(other, other) == name]
            below = {group.get(t, t) for member in members for t in graph[member]} - {name}
            found[name] = 1 + max(map(floor, below), default=0)
        return found[name]

    return {name: floor(group.get(name, name)) for name in graph}


# ---------------------------------------------------------------------- sizes


def file_sizes(modules: Mapping[str, Path], root: Path) -> list[Size]:
    """Lines of every file, longest first."""
    return _longest(
        Size(path.read_text(encoding="utf-8").count("\n"), str(path.relative_to(root.parent)))
        for path in modules.values()
    )


def function_sizes(modules: Mapping[str, Path], root: Path) -> list[Size]:
    """Lines of every function and method, docstring included and decorators not, longest first."""
    return _longest(chain.from_iterable(_functions(path, root) for path in modules.values()))


def _functions(path: Path, root: Path) -> Iterator[Size]:
    for node in ast.walk(_parsed(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            yield Size(lines, f"{path.relative_to(root.parent)}:{node.lineno} {node.name}")


def _longest(sizes: Iterator[Size]) -> list[Size]:
    return sorted(sizes, key=lambda size: (-size.lines, size.where))


# ---------------------------------------------------------------------- the page


def report(root: Path) -> Iterator[str]:
    """The lines that this program prints."""
    modules = read_modules(root)
    graph = import_graph(modules)
    files, functions = file_sizes(modules, root), function_sizes(modules, root)
    packages = [
        root.name,
        *(f"{root.name}.{path.parent.name}" for path in sorted(root.glob("*/__init__.py"))),
    ]
    yield f"{'package':24}{'rooms':>7}{'floors':>8}{'arrows':>8}{'circles':>9}{'files':>7}{'lines':>8}"
    for package in packages:
        inside = rooms(graph, package)
        own = [path for name, path in modules.items() if f"{name}.".startswith(f"{package}.")]
        yield (
            f"{package:24}{len(inside):7}{max(floors(inside).values(), default=0):8}"
            f"{sum(map(len, inside.values())):8}{len(circles(inside)):9}{len(own):7}"
            f"{sum(size.lines for size in files if root.parent / size.where in own):8}"
        )
    yield ""
    yield f"circles of modules: {len(circles(graph))}"
    yield from (f"       {' '.join(group)}" for group in circles(graph))
    yield "longest files:"
    yield from map(str, files[:3])
    yield f"longest of {len(functions)} functions:"
    yield from map(str, functions[:3])


def main() -> None:
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "v1lit"
    if not (given / "__init__.py").is_file():
        sys.exit(f"{given} is no package: it has no __init__.py")
    print("\n".join(report(given.resolve())))


if __name__ == "__main__":
    main()
