"""One convention for every docstring of v1lit, and for the strings below fields and constants."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "v1lit"
FILES = [str(path.relative_to(PACKAGE)) for path in sorted(PACKAGE.rglob("*.py"))]

Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Doc:
    """A text that documents a module, a definition or a field (constants too), and where it stands."""

    line: int
    owner: str
    kind: str
    text: str


def is_public(name: str) -> bool:
    return not name.startswith("_")


def definitions(body: list[ast.stmt], inside: str = "") -> Iterator[tuple[str, Definition]]:
    """Functions, classes and methods with their dotted names, but not those inside functions."""
    for node in body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield inside + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{inside}{node.name}.")
        elif isinstance(node, ast.If):
            yield from definitions([*node.body, *node.orelse], inside)


def docs(tree: ast.Module) -> Iterator[Doc]:
    """Every text that documents a module, a definition, a field or a constant."""
    if text := ast.get_docstring(tree):
        yield Doc(1, "the module", "module", text)
    for name, node in definitions(tree.body):
        if text := ast.get_docstring(node):
            yield Doc(node.lineno, name, "definition", text)
    yield from strings_below(tree)


def strings_below(tree: ast.Module) -> Iterator[Doc]:
    """Texts below assignments, wherever these stand."""
    for parent in ast.walk(tree):
        body = getattr(parent, "body", [])
        for node, string in pairwise(body) if isinstance(body, list) else ():
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and is_text(string):
                target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                yield Doc(string.lineno, ast.unparse(target), "field", string.value.value)


def is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def faults(source: str) -> Iterator[str]:
    """What a module's texts do that the convention forbids, and which are missing."""
    tree = ast.parse(source)
    if source.strip() and ast.get_docstring(tree) is None:
        yield "1: the module has no docstring"
    for name, node in definitions(tree.body):
        if name.endswith(".__init__") and ast.get_docstring(node):
            yield f"{node.lineno}: {name} has a docstring; its arguments belong into that of the class"
    for name, node in undocumented(tree.body):
        yield f"{node.lineno}: {name} has no docstring"
    for doc in docs(tree):
        yield from (f"{doc.line}: {doc.owner}: {fault}" for fault in text_faults(doc))


def undocumented(body: list[ast.stmt]) -> Iterator[tuple[str, Definition]]:
    """Public functions and classes without a docstring, and methods: not overrides, nor those of one line."""
    for name, node in definitions(body):
        if "." not in name and is_public(name):
            if ast.get_docstring(node) is None:
                yield name, node
            if isinstance(node, ast.ClassDef) and not node.bases:
                for method, inner in definitions(node.body, f"{name}."):
                    short = isinstance(inner, FUNCTIONS) and len(inner.body) == 1
                    if is_public(inner.name) and ast.get_docstring(inner) is None and not short:
                        yield method, inner


def text_faults(doc: Doc) -> Iterator[str]:
    first = doc.text.strip().partition("\n")[0]
    if not re.match(r"[A-Z`]", first):
        yield f"begins neither with a capital nor with a backtick: {first!r}"
    if doc.kind != "field" and not first.endswith((".", ":") if doc.kind == "module" else "."):
        yield f"the first line is no whole sentence: {first!r}"
    if "``" in re.sub(r"^ *```.*?```", "", doc.text, flags=re.MULTILINE | re.DOTALL):
        yield "double backticks"
    if section := re.search(r"^ *(Attributes|Raises):$", doc.text, re.MULTILINE):
        yield f"a section {section[0].strip()!r}"


# ---------------------------------------------------------------- v1lit


@pytest.mark.parametrize("file", FILES)
def test_the_docstrings_of_a_file_follow_the_convention(file: str) -> None:
    found = [*faults((PACKAGE / file).read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


# ---------------------------------------------------------------- what is found, and what is not

MODULE = '"""M."""\n'
CLASS = f'{MODULE}class C:\n    """C."""\n    '
TWO_LINES = "def f(self):\n        x = 1\n        return x"
SECTION = '"""F.\n\n        Raises:\n            E: if so.\n        """'
FAULTS = {
    "x = 1": "the module has no docstring",
    '"""lower case."""': "begins neither",
    '"""No stop"""': "no whole sentence",
    '"""A sentence that\nis on two lines."""': "no whole sentence",
    f'{MODULE}x = 1\n"""lower."""': "x: begins neither",
    f'{CLASS}x: int\n    """and so on."""': "x: begins neither",
    f'{CLASS}def __init__(self):\n        self.x = 1\n        """lower."""': "self.x: begins",
    f"{MODULE}def f(): ...": "f has no docstring",
    f"{MODULE}if True:\n    async def f(): ...": "f has no docstring",
    f"{MODULE}class C: ...": "C has no docstring",
    f"{CLASS}{TWO_LINES}": "C.f has no docstring",
    f'{CLASS}def __init__(self):\n        """I."""': "C.__init__ has a docstring",
    f'{MODULE}def _f():\n    """Of ``x``."""': "double backticks",
    '"""M.\n\nAttributes:\n    x: an x.\n"""': "a section 'Attributes:'",
    f"{CLASS}def _f(self):\n        {SECTION}": "a section 'Raises:'",
}
ALLOWED = [
    "",
    '"""Modules of a package:\n\n- one\n"""',
    '"""`x` of it. And more."""',
    f'{MODULE}x = 1\n"""X, in seconds"""',
    f"{MODULE}def _f():\n    def g(): ...",
    f"{CLASS.replace('C:', 'C(Base):')}{TWO_LINES}",
    f"{CLASS}@property\n    def f(self):\n        return 1",
    '"""M.\n\n```python\nx\n```\n"""',
    f'{CLASS[:-8]}\n\n    Args:\n        x: an x.\n    """\n    def __init__(self, x): ...',
]


@pytest.mark.parametrize("source", FAULTS, ids=FAULTS.values())
def test_a_fault_is_found(source: str) -> None:
    (found,) = faults(source)
    assert FAULTS[source] in found


@pytest.mark.parametrize("source", ALLOWED)
def test_what_follows_the_convention_has_no_fault(source: str) -> None:
    assert [*faults(source)] == []
