"""`v1lit data stats`: what the examples of some shards or of a recipe are, as tables and as a page."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from v1lit.cli.errors import Parser, UserError, a_path

if TYPE_CHECKING:
    from v1lit.data.tools.cost import Rules


def main(argv: Sequence[str]) -> int:
    """Run `v1lit data stats` with the arguments behind it; returns the exit code."""
    parser = Parser(
        prog="v1lit data stats",
        usage="v1lit data stats SOURCE [options] [--key=value ...]",
        description="How many examples, questions, images and regions, how large each is, and with a recipe "
        "or --backbone how many tokens. --key=value changes a recipe.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=a_path,
        help="folder (its train/, where it has splits), tar file, pattern or URL; or a recipe, for its "
        "training sources",
    )
    parser.add_argument("--html", type=a_path, help="also write a page of histograms and pictures: one file")
    parser.add_argument("--backbone", help="whose tokens to count, where SOURCE is no recipe")
    parser.add_argument(
        "--weights", type=a_path, default="tiny", help="hub id or folder to take the tokenizer from"
    )
    parser.add_work()
    options, changes = parser.read_with_changes(argv)
    if options.html is not None and os.path.isdir(options.html):
        raise UserError(f"--html={options.html} is a folder\ngive a file for the page")

    from v1lit.cli.surveys import is_recipe, open_recipe, print_sheet, rules_of
    from v1lit.data.tools.sheets import name_sheet, source_sheet, value_sheet
    from v1lit.data.tools.stats import count_stats, write_page

    rules: dict[str, Rules]
    if is_recipe(options.source):
        if options.backbone is not None:
            raise UserError("--backbone is that of the recipe\nchange it there: --model.backbone.name=NAME")
        rules = rules_of(open_recipe(options.source, changes), val=False)
        locations = list(rules)
    else:
        parser.refuse(changes)
        locations = [_train_of(options.source)]
        rules = {} if options.backbone is None else _rules(locations[0], options.backbone, options.weights)
    stats = count_stats(locations, rules, workers=options.workers, progress=options.progress)
    whole = stats.whole
    print_sheet(source_sheet(stats.surveys))
    print_sheet(value_sheet(whole))
    print_sheet(name_sheet("questions", "begin with", whole.questions))
    print_sheet(name_sheet("sources of examples", "source", whole.sources))
    if stats.problems:
        again = f"`v1lit data check {options.source}` names them"
        sys.stderr.write(f"{stats.problems:,} problems, whose examples may not be counted: {again}\n")
    if options.html is not None:
        print(write_page(stats, options.html, f"{options.source}: {whole.examples:,} examples"))
    return 0


def _train_of(location: str) -> str:
    """Where the training shards of a location are: it, or its `train/`."""
    from v1lit.data.config import SourceConfig
    from v1lit.data.sources.registry import has_train, train_sources

    config = SourceConfig(folder=location)
    return train_sources(config)[0].shards if has_train(config) else location


def _rules(location: str, backbone: str, weights: str) -> dict[str, Rules]:
    """Those of a backbone, everything else as a recipe has it that says nothing."""
    from v1lit.backbones.config import BackboneConfig
    from v1lit.backbones.processor import load_processor
    from v1lit.data.config import EncodingConfig
    from v1lit.data.lengths.length import LengthOptions
    from v1lit.data.tools.cost import Rules

    processor = load_processor(BackboneConfig(name=backbone, weights=weights))
    return {location: Rules(LengthOptions(processor, EncodingConfig()))}
