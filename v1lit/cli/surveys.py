"""What `v1lit data check` and `v1lit data stats` share: recipes in place of shards, and tables of surveys."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from v1lit.cli.errors import UserError
from v1lit.cli.recipe import SUFFIXES, compose, shipped_recipes

if TYPE_CHECKING:
    from v1lit.data.datamodule import V1DataModule
    from v1lit.data.tools.cost import Rules
    from v1lit.data.tools.sheets import Sheet


def is_recipe(text: str) -> bool:
    """Whether a word names a recipe: a YAML file, or a shipped recipe where nothing else has its name."""
    return text.endswith(SUFFIXES) or (not os.path.exists(text) and text in shipped_recipes())


def open_recipe(recipe: str, changes: Sequence[str]) -> V1DataModule:
    """The data of a recipe, whose training shards are there; raises UserError where they are not."""
    from v1lit.cli.recipe_cli import RecipeCLI
    from v1lit.data.formats.registry import FORMATS

    _, data = RecipeCLI(compose(recipe, changes), parse_only=True).model_and_data()
    if not data.has_train:
        where = ", ".join(source.shards for source in data.train_sources)
        name = data.source.name
        made = {"synthetic": "v1lit data synth", **{form: f"v1lit data import {form}" for form in FORMATS}}
        run = f"a run makes them when it starts, and so does `{made.get(name)}`"
        why = run if name in made else "`v1lit data import` and `v1lit data synth` make some"
        raise UserError(f"data.source: there are no shards yet at {where}\n{why}")
    return data


def rules_of(data: V1DataModule, *, val: bool) -> dict[str, Rules]:
    """What the recipe does to the examples of every location; `val`: also to those of validation."""
    from v1lit.data.lengths.length import LengthOptions
    from v1lit.data.tools.cost import Rules

    train = Rules(LengthOptions(data.processor, data.encoding, data.map), data.packing)
    rules = {source.shards: train for source in data.train_sources}
    if val and data.has_val:
        map = data.map if data.map_validation else None
        for source in data.val_sources:
            rules.setdefault(source.shards, Rules(LengthOptions(data.processor, data.encoding, map)))
    return rules


def print_sheet(sheet: Sheet) -> None:
    """Print a table; wider than the screen, if it must be: a path that is broken cannot be copied."""
    from rich.table import Table

    from v1lit.console import screen

    table = Table(title=sheet.title, title_justify="left")
    for number, column in enumerate(sheet.columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in sheet.rows:
        table.add_row(*row)
    lines = [sheet.columns, *sheet.rows]
    wanted = 1 + sum(3 + max(len(line[number]) for line in lines) for number in range(len(sheet.columns)))
    screen(width=max(screen().width, wanted)).print(table)
