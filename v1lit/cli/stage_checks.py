"""Stages that come later are checked before the first one begins: a mistake in them costs no day."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from v1lit.cli.errors import UserError, two_lines
from v1lit.cli.recipe import Recipe, flattened
from v1lit.cli.recipe_cli import RecipeCLI
from v1lit.cli.stage_recipes import named, placed, stage_in
from v1lit.data.sources.registry import prepare_source
from v1lit.plan.architecture import model_config, model_on_meta
from v1lit.training.groups import places
from v1lit.training.optimizer import build_optimizer
from v1lit.training.quiet import quiet
from v1lit.training.resuming import CHANGES, Change

SAME = [*(key for key, change in CHANGES.items() if change is Change.MODEL), "model.backbone.weights"]
"""Keys in which a stage cannot differ from the one whose weights it begins from."""


def check_stages(first: Recipe, later: Sequence[Recipe]) -> None:
    """Check stages as far as that goes before their time: keys, values, devices, files, data, what learns.

    Their data are made now, but for processes that a launcher has started together: these could wait in vain.

    Args:
        first: of the stages, which begins now; it finds its own mistakes while it begins.
        later: stages behind it, in order.

    Raises UserError, which names the stage.
    """
    with named(stage_in(first)):
        before = RecipeCLI(first).config.as_dict()
        _refuse_without_export(first, before)
    clis = []
    for recipe in later:
        with named(stage_in(recipe)):
            cli = RecipeCLI(placed(recipe, None))
            config = cli.config.as_dict()
            _refuse_without_export(recipe, config)
            if config["model"]["begin_from"] is None:
                _refuse_other_model(recipe, before, config)
            cli.rehearse()
            _check_learning(cli)
            clis.append(cli)
            before = config
    for cli in clis:
        with named(stage_in(cli.recipe)):
            _make_data(cli)


def _check_learning(cli: RecipeCLI) -> None:
    """Find patterns and parts that the model does not have, and an optimizer without anything to learn."""
    module = cli.model
    options = module.backbone_config, module.pointer_config, module.revisit_config
    with _mistakes(cli.recipe):
        model = model_on_meta(model_config(options[0]), *options, module.frozen_patterns)
        config = module.optimizer_config
        build_optimizer(model.named_parameters(remove_duplicate=False), config, places(model, config))


def _make_data(cli: RecipeCLI) -> None:
    source = cli.datamodule.source
    with quiet(), _mistakes(cli.recipe):
        cli.prepare_data()
        if source.name == "shards":
            prepare_source(source, cli.datamodule.stream.retry)


@contextmanager
def _mistakes(recipe: Recipe) -> Iterator[None]:
    try:
        with recipe.options():
            yield
    except ValueError as error:
        raise UserError(two_lines(str(error))) from error


def _refuse_without_export(recipe: Recipe, config: Mapping[str, Any]) -> None:
    if not (config["run"]["export"] or stage_in(recipe).is_last):
        raise UserError(
            f"run.export is false ({recipe.origin('run.export')}); the next stage begins from what this one "
            "exports\nleave it out"
        )


def _refuse_other_model(recipe: Recipe, before: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    was, now = (flattened({"model": one["model"]}) for one in (before, config))
    keys = {key for key in was.keys() | now.keys() if any(f"{key}.".startswith(f"{same}.") for same in SAME)}
    for key in sorted(keys):
        if was.get(key) != now.get(key):
            raise UserError(
                f"{key} is {now.get(key)} ({recipe.origin(key)}), and {was.get(key)} in the stage from whose "
                "weights this one begins\ngive both the same"
            )
