"""`v1lit data mix RECIPE`: what the recipe's training sources will draw."""

from __future__ import annotations

from collections.abc import Sequence

from v1lit.cli.errors import Parser


def main(argv: Sequence[str]) -> int:
    """Run `v1lit data mix` with the arguments after `mix`; returns the exit code."""
    parser = Parser(
        prog="v1lit data mix",
        usage="v1lit data mix RECIPE [--key=value ...]",
        description="What training as RECIPE says will draw from each of its sources (data.source.mixture): "
        "examples per epoch, how often each comes, and what the first thousand examples are. Reads indices "
        "only.",
    )
    parser.add_argument("recipe", metavar="RECIPE")
    options, changes = parser.read_with_changes(argv)

    from rich.table import Table

    from v1lit.cli.recipe import compose
    from v1lit.cli.recipe_cli import RecipeCLI
    from v1lit.console import screen
    from v1lit.data.tools.mix import mixture_shares

    _, data = RecipeCLI(compose(options.recipe, changes), parse_only=True).model_and_data()
    drawn = mixture_shares(data.train_sources, data.stream, data.seed)
    table = Table(title=f"{sum(source.per_epoch for source in drawn)} examples per epoch, seed {data.seed}")
    table.add_column("source", overflow="fold")
    first = sum(source.first for source in drawn)
    columns = {
        "shards": [str(source.shards) for source in drawn],
        "examples": [str(source.examples) for source in drawn],
        "weight": ["" if source.weight is None else f"{source.weight:g}" for source in drawn],
        "limit": ["" if source.limit is None else str(source.limit) for source in drawn],
        "per epoch": [str(source.per_epoch) for source in drawn],
        "share": [f"{source.share:.1%}" for source in drawn],
        "times each": [f"{source.times:.2f}" for source in drawn],
        "of the first": [f"{source.first}/{first}" for source in drawn],
    }
    for column in columns:
        table.add_column(column, justify="right")
    for row in zip((source.location for source in drawn), *columns.values(), strict=True):
        table.add_row(*row)
    # A path that is broken over several lines cannot be copied: wider than the screen, if it must be.
    longest = max(len(source.location) for source in drawn)
    screen(width=max(screen().width, 90 + longest)).print(table)
    for source in drawn:
        if source.times > 1:
            print(f"{source.location}: every example comes {source.times:.2f} times per epoch on average")
        elif source.times < 1:
            print(f"{source.location}: an epoch takes {source.times:.0%} of it, the next one takes others")
    return 0
