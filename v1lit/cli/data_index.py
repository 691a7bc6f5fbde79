"""`v1lit data index`: where examples lie, and checksums, for shards that v1lit did not write."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from v1lit.cli.errors import Parser, RunFailed, a_path
from v1lit.data.reasons import in_words, most_frequent
from v1lit.data.shards import index_shards


def main(argv: Sequence[str]) -> int:
    """Run `v1lit data index` with the arguments behind it; returns the exit code."""
    parser = Parser(
        prog="v1lit data index",
        usage="v1lit data index LOCATION [options] [--lengths RECIPE [--key=value ...]]",
        description="Make index.json and an index beside each shard: counts, places of examples, checksums. "
        "Called again, it reads new and changed shards only.",
    )
    parser.add_argument("location", type=a_path, help="folder, tar file or pattern, local or URL")
    parser.add_argument(
        "--out", type=a_path, help="folder for the index; the folder of the shards when not given"
    )
    parser.add_argument(
        "--lengths", metavar="RECIPE", help="also measure how many tokens each example has in this recipe"
    )
    parser.add_work()
    given, changes = parser.read_with_changes(argv)
    options = None
    if given.lengths:  # A mistake in the recipe is told at once.
        from v1lit.cli.recipe import compose
        from v1lit.cli.recipe_cli import RecipeCLI
        from v1lit.data.lengths.length import LengthOptions

        _, data = RecipeCLI(compose(given.lengths, changes), parse_only=True).model_and_data()
        options = LengthOptions(data.processor, data.encoding, data.map)
    else:
        parser.refuse(changes)
    started = time.monotonic()
    index = index_shards(given.location, given.out, workers=given.workers, progress=given.progress)
    folder = given.out or (
        given.location if os.path.isdir(given.location) else os.path.dirname(given.location)
    )
    _print(folder or ".", index, time.monotonic() - started)
    if index["unusable"] == index["examples"]:
        why = in_words(most_frequent(bad["reason"] for bad in index["bad"]))
        raise RunFailed(f"not one of the {index['examples']:,} examples can be used: {why}")
    if options is not None:
        from v1lit.data.lengths.store import write_lengths

        path = write_lengths(folder or ".", options, workers=given.workers, progress=given.progress)
        print(f"{path}: their lengths in tokens")
    return 0


def _print(folder: str, index: dict[str, Any], seconds: float) -> None:
    shards = index["shards"]
    size = sum(shard["bytes"] for shard in shards)
    problems = ", ".join(f"{count:,} {kind}" for kind, count in index["problems"].items()) or "no problems"
    print(
        f"{folder}: {len(shards):,} shards, {index['examples']:,} examples, {size / 1e9:.3g} GB "
        f"in {seconds:.1f} s; {problems}"
    )
    for bad in index["bad"][:5]:
        example = f", example {bad['key']!r}" if bad["key"] is not None else ""
        print(f"  {bad['kind']}: {bad['shard']}{example}: {bad['reason']}")
    if index["problems"]:
        print("  `v1lit data check` says more")
