"""`v1lit report RUN_FOLDER`: what a run leaves behind, made again from its checkpoint, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from v1lit.cli.errors import Parser, UserError, a_path
from v1lit.cli.recipe import compose
from v1lit.cli.stage_marks import stage_folders
from v1lit.training.card import recipes_of


def main(argv: Sequence[str]) -> int:
    """Run `v1lit report` with the arguments after `report`; returns the exit code."""
    parser = Parser(
        prog="v1lit report",
        usage="v1lit report RUN_FOLDER [--output FOLDER] [--key=value ...] [--debug]",
        description="Make model/, pictures/ and metrics.json of a run again, from its best checkpoint (else "
        "its newest), as its recipe says, without training: after a report that failed, or of a run that did "
        "not come to its end.",
        epilog="--run.KEY=value changes how, such as --run.report_batch_size=4 or --run.export=false; "
        "likewise any key but those of another model: --trainer.accelerator=cpu, --data.source.val=PATH, ...",
    )
    parser.add_argument("folder", metavar="RUN_FOLDER", type=a_path)
    parser.add_argument(
        "--output", metavar="FOLDER", type=a_path, help="folder to write to, instead of the run's own"
    )
    options, changes = parser.read_with_changes(argv)
    folder = Path(options.folder)
    recipe = compose(str(newest_recipe(folder)), ["--run.resume=null", *changes])
    from lightning.fabric import Fabric

    from v1lit.cli.recipe_cli import RecipeCLI
    from v1lit.training.config import RunConfig
    from v1lit.training.quiet import quiet
    from v1lit.training.results import make_results
    from v1lit.training.resuming import refuse_other_model
    from v1lit.training.saved_run import measured, saved_weights
    from v1lit.training.saved_state import read_checkpoint

    with quiet():
        weights, steps = saved_weights(folder)
        cli = RecipeCLI(recipe)
        config: dict[str, Any] = cli.config.as_dict()
        module, data = cli.model_and_data()
        if weights.load is not None:
            refuse_other_model(read_checkpoint(weights.load), module.options, str(weights.load))
        if not data.has_val:
            data.prepare_data()
        wanted = config["trainer"]["accelerator"]
        device = Fabric(accelerator=wanted if isinstance(wanted, str) else "auto", devices=1).device
        print(f"from {weights.load}, of a run of {steps} steps")
        run = RunConfig(**config["run"])
        output = Path(options.output or folder)
        output.mkdir(parents=True, exist_ok=True)
        make_results(module, data, run, output, measured(folder, steps), weights, device)
    return 0


def newest_recipe(folder: Path) -> Path:
    """The resolved recipe of a run that was written last: `recipe.yaml`, or `recipe-2.yaml` and so on.

    Raises UserError where there is none.
    """
    found = recipes_of(folder)
    if not found:
        if stages := stage_folders(folder):
            raise UserError(
                f"{folder} holds a run of stages\ngive one of them: {', '.join(map(str, stages))}"
            )
        what = "it has no recipe.yaml" if folder.is_dir() else "there is no such folder"
        raise UserError(
            f"{folder} is no folder of a run: {what}\ngive a folder that `lightning run` has made"
        )
    return found[-1]
