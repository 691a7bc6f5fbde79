"""`v1lit run RECIPE`: compose, check, then hand over to `v1lit.training.run`."""

from __future__ import annotations

from collections.abc import Sequence

from v1lit.cli.errors import UserError
from v1lit.cli.importing import importing
from v1lit.cli.recipe import compose, compose_all, shipped_recipes, stages_of
from v1lit.processes import end_with_launcher

USAGE = """usage: v1lit run RECIPE [--key=value ...] [--print_config] [--debug]
       lightning run RECIPE ...   is the same

Train as RECIPE says: a YAML file, or the bare name of a shipped recipe:
  {recipes}

  --key=value      change one key, such as --trainer.max_steps=100 or --model.backbone.weights=/models/qwen
  --key=part.yaml  take a part for a whole group, such as --trainer=configs/trainer/cpu.yaml
  --run.resume=last  resume from the newest checkpoint of --run.name; auto: or begin anew
  --stages.NAME.key=value  change one key of one stage, where a recipe has stages
  --run.stage=NAME  train one stage by itself
  --print_config   print the resolved recipe, every key with its value, and stop
  --debug          show the traceback of an error
  RECIPE --help    every key with its meaning
"""


def main(argv: Sequence[str]) -> int:
    """Run `v1lit run` with the arguments after `run`; returns the exit code."""
    end_with_launcher()
    debug, argv = "--debug" in argv, [argument for argument in argv if argument != "--debug"]
    if not argv:
        raise UserError(
            f"RECIPE is missing: v1lit run RECIPE [--key=value ...]\nshipped: {', '.join(shipped_recipes())}"
        )
    if argv[0] in ("-h", "--help"):
        print(USAGE.format(recipes=", ".join(shipped_recipes())))
        return 0
    name, *rest = argv
    if name.startswith("-"):
        raise UserError(f"RECIPE comes first, before {name!r}\nv1lit run RECIPE [--key=value ...]")
    flags = {flag for flag in ("--print_config", "--help", "-h") if flag in rest}
    changes = [argument for argument in rest if argument not in flags]
    if flags:
        return _show(name, changes, everything=flags == {"--print_config"})
    if stages_of(name, changes):
        from v1lit.cli.stages import run_stages

        return run_stages(name, changes, debug)
    recipe = compose(name, changes)
    if recipe.stage is not None:
        from v1lit.cli.stages import run_stage

        return run_stage(recipe, name, changes, argv)
    with importing():
        # With torch and Lightning: once the files are known to be there.
        from v1lit.cli.recipe_cli import RecipeCLI

        run = RecipeCLI(recipe)
    return run.train(argv)


def _show(name: str, changes: Sequence[str], everything: bool) -> int:
    """Print a recipe, everything of it, a document for each of its stages; or what every key means."""
    with importing():
        from v1lit.cli.key_reference import key_reference
        from v1lit.cli.recipe_cli import RecipeCLI
        from v1lit.cli.stage_recipes import as_shown, named

    for recipe in compose_all(name, changes):
        if not everything:
            print(key_reference(RecipeCLI(recipe, parse_only=True).config.as_dict()))
            break
        if recipe.stage is None:
            print(RecipeCLI(recipe, parse_only=True).resolved(), end="")
            continue
        with named(recipe.stage):
            text = RecipeCLI(as_shown(recipe), parse_only=True).resolved()
        print(f"--- # stage {recipe.stage.name}\n{text}", end="")
    return 0
