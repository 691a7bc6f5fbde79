"""`v1lit list`: the backbones, revisit strategies and recipes; imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Sequence

from v1lit.backbones.registry import list_backbones
from v1lit.cli.errors import Parser
from v1lit.cli.recipe import shipped_recipes
from v1lit.revisit.registry import list_strategies


def main(argv: Sequence[str]) -> int:
    """Run `v1lit list`; returns the exit code."""
    Parser(prog="v1lit list", description="Backbones, revisit strategies and recipes.").read(argv)
    print("backbones (model.backbone.name)")
    for name in list_backbones():
        print(f"  {name}")
    print("ways to look at the image again (model.revisit.name)")
    for name in list_strategies():
        print(f"  {name}")
    print("recipes (lightning run NAME)")
    recipes = shipped_recipes()
    width = max(map(len, recipes), default=0)
    for name, path in recipes.items():
        what = path.read_text(encoding="utf-8").partition("\n")[0]  # the first line, a comment
        print(f"  {name:<{width}}  {what.removeprefix('#').strip()}")
    return 0
