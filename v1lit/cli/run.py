"""`v1lit run RECIPE`: compose, check, then hand over to `v1lit.training.run`."""

from __future__ import annotations

from collections.abc import Sequence

from v1lit.cli.errors import UserError
from v1lit.cli.recipe import compose, shipped_recipes
from v1lit.processes import end_with_launcher

USAGE = """usage: v1lit run RECIPE [--key=value ...] [--print_config] [--debug]
       lightning run RECIPE ...   is the same

Train as RECIPE says: a YAML file, or the bare name of a shipped recipe:
  {recipes}

  --key=value      change one key, such as --trainer.max_steps=100 or --model.backbone.weights=/models/qwen
  --key=part.yaml  take a part for a whole group, such as --trainer=configs/trainer/cpu.yaml
  --run.resume=last  resume from the newest checkpoint of --run.name; auto: or begin anew
  --print_config   print the resolved recipe, every key with its value, and stop
  --debug          show the traceback of an error
  RECIPE --help    every key with its meaning
"""


def main(argv: Sequence[str]) -> int:
    """Run `v1lit run` with the arguments after `run`; returns the exit code."""
    end_with_launcher()
    argv = [argument for argument in argv if argument != "--debug"]
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
    recipe = compose(name, [argument for argument in rest if argument not in flags])
    from v1lit.cli.recipe_cli import RecipeCLI  # torch and Lightning: once the files are known to be there

    if flags & {"--help", "-h"}:
        from v1lit.cli.key_reference import key_reference

        print(key_reference(RecipeCLI(recipe, parse_only=True).config.as_dict()))
    elif flags:
        print(RecipeCLI(recipe, parse_only=True).resolved(), end="")
    else:
        return RecipeCLI(recipe).train(argv)
    return 0
