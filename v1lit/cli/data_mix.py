"""`v1lit data mix RECIPE`: what the recipe's training sources will draw."""

from __future__ import annotations

from collections.abc import Sequence

from v1lit.cli.errors import UserError

USAGE = """usage: v1lit data mix RECIPE [--key=value ...]

What training as RECIPE says will draw from each of its sources (data.source.mixture): examples per epoch, how
often each comes, and what the first thousand examples are. Reads indices only."""


def main(argv: Sequence[str]) -> int:
    """Run `v1lit data mix` with the arguments after `mix`; returns the exit code."""
    argv = [argument for argument in argv if argument != "--debug"]
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if not argv or argv[0].startswith("-"):
        raise UserError("RECIPE is missing: v1lit data mix RECIPE [--key=value ...]")

    from rich.table import Table

    from v1lit.cli.recipe import compose
    from v1lit.cli.recipe_cli import RecipeCLI
    from v1lit.console import screen
    from v1lit.data.tools.mix import mixture_shares

    _, data = RecipeCLI(compose(argv[0], argv[1:]), parse_only=True).model_and_data()
    drawn = mixture_shares(data.train_sources, data.stream, data.seed)
    table = Table(title=f"{sum(one.per_epoch for one in drawn)} examples per epoch, seed {data.seed}")
    table.add_column("source", overflow="fold")
    for column in (
        "shards",
        "examples",
        "weight",
        "limit",
        "per epoch",
        "share",
        "times each",
        "of the first",
    ):
        table.add_column(column, justify="right")
    first = sum(one.first for one in drawn)
    for one in drawn:
        table.add_row(
            one.location,
            str(one.shards),
            str(one.examples),
            "" if one.weight is None else f"{one.weight:g}",
            "" if one.limit is None else str(one.limit),
            str(one.per_epoch),
            f"{one.share:.1%}",
            f"{one.times:.2f}",
            f"{one.first}/{first}",
        )
    # A path that is broken over several lines cannot be copied: wider than the screen, if it must be.
    longest = max(len(one.location) for one in drawn)
    screen(width=max(screen().width, 90 + longest)).print(table)
    for one in drawn:
        if one.times > 1:
            print(f"{one.location}: every example comes {one.times:.2f} times per epoch on average")
        elif one.times < 1:
            print(f"{one.location}: an epoch takes {one.times:.0%} of it, the next one goes on with others")
    return 0
