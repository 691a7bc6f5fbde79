"""Every trial of a sweep checked before the first one starts, and what each will cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from v1lit.cli.errors import UserError
from v1lit.cli.recipe import COMMAND_LINE, Recipe, compose, stages_of
from v1lit.cli.recipe_cli import RecipeCLI
from v1lit.errors import OptionError
from v1lit.sweep.config import Budget, Sweep
from v1lit.sweep.cost import StepCost, TrialCost, devices_of, uses_gpu
from v1lit.sweep.folder import SweepFolder
from v1lit.sweep.grid import Trial
from v1lit.sweep.loggers import grouped
from v1lit.training.quiet import quiet

STEPS = "trainer.max_steps"


@dataclass(frozen=True)
class Checked:
    """A trial whose recipe was checked, with all that its command changes."""

    trial: Trial
    on_gpu: bool
    """Whether it takes a GPU of this machine."""
    devices: int = 1
    """Processes of a trial that compute, each on a core or a GPU."""
    disk: int | None = None
    """Bytes that it leaves."""
    tokens: float | None = None
    flops: float | None = None
    """Of the whole trial; None where the data are not there yet, or their end is not known."""
    seconds: float | None = None
    """That it computes."""
    unknown: str = ""
    """Why something is not known."""


class Checker:
    """Checks trials as `lightning run` would, without training; once where only seeds differ.

    Args:
        sweep: whose trials they are.
        file: that says so, for messages.
        folder: of the sweep.
        reckon: say what trials cost, where that needs no data to be made.
        elsewhere: look at the recipes alone, not at devices, files and weights of this machine.
    """

    def __init__(
        self, sweep: Sweep, file: str, folder: SweepFolder, reckon: bool = False, elsewhere: bool = False
    ) -> None:
        self.sweep, self.file, self.folder = sweep, file, folder
        self.reckon, self.elsewhere = reckon, elsewhere
        self.by_steps = sweep.budget.kind in ("tokens", "flops")
        self._drawn: dict[str, dict[tuple[int, int], int]] = {}
        self._parsed: dict[str, RecipeCLI] = {}
        self._known: dict[str, tuple[TrialCost, StepCost | None, str]] = {}

    def all(self, trials: Sequence[Trial]) -> list[Checked]:
        """The trials with what was found out; raises UserError naming the trial."""
        if stages := stages_of(self.sweep.base):
            why = (
                f"it has the stages {', '.join(stages)}, and a trial is one run\ngive the recipe that one "
                "has left, such as runs/NAME/2-whole/recipe.yaml: it begins from the same model"
            )
            raise OptionError("base", self.sweep.base, why)
        checked = []
        for number, trial in enumerate(trials, 1):
            try:
                checked.append(self._check(trial))
            except (UserError, OptionError) as error:
                # Its changes are typed, but nobody has typed them.
                what = str(error).replace(f"({COMMAND_LINE})", f"({self.file})")
                raise UserError(f"trial {number} of {len(trials)}, {trial.name}: {what}") from error
        return checked

    def _check(self, trial: Trial) -> Checked:
        recipe = self._compose(trial)
        logger = grouped(recipe.config.get("trainer", {}).get("logger"), self.sweep.name, trial.name)
        if logger is not None:
            trial = trial.changed({"trainer.logger": logger})
            recipe = self._compose(trial)
        cli = self._parse(recipe)
        config: dict[str, Any] = cli.config.as_dict()
        self._refuse_alike(trial, config, recipe)
        on = (uses_gpu(config), devices_of(config) or 1)
        if self.sweep.budget.kind == "seconds":
            _refuse_schedule(self.sweep.budget, config["model"]["optimizer"])
        if not (self.by_steps or self.reckon):
            return Checked(trial, *on)
        budget = self.sweep.budget
        cost, step, unknown = self._cost(trial, cli, config)
        if self.by_steps:
            if step is None and self.elsewhere:
                return Checked(trial, *on, cost.disk(), unknown=unknown)
            if step is None:
                raise UserError(f"budget.{budget.kind}: {unknown}\ngive budget.steps instead")
            trial = trial.changed({STEPS: step.steps(budget)})
        steps = trial.changes[STEPS]
        if budget.kind == "seconds":
            return Checked(trial, *on, cost.disk(), seconds=budget.amount, unknown="the budget is of time")
        if step is None:
            return Checked(trial, *on, cost.disk(), unknown=unknown)
        flops = step.flops * steps
        seconds = None if self.elsewhere else cost.seconds(flops)
        return Checked(trial, *on, cost.disk(), step.tokens * steps, flops, seconds)

    def _parse(self, recipe: Recipe) -> RecipeCLI:
        """The recipe as a run reads it, once for trials that differ in name and seeds alone."""
        key = _but_seeds(recipe.config)
        if key is None or key not in self._parsed:
            parsed = RecipeCLI(recipe, parse_only=self.elsewhere)
            return parsed if key is None else self._parsed.setdefault(key, parsed)
        return self._parsed[key]

    def _refuse_alike(self, trial: Trial, config: dict[str, Any], recipe: Recipe) -> None:
        """Raise OptionError where a seed changes neither the first weights nor the order of the data."""
        own = OmegaConf.create(recipe.config)
        follows = tuple(
            OmegaConf.select(own, f"{group}.{key}", default=config[group][key])
            for group, key in (("model", "init_seed"), ("data", "seed"))
        )
        others = self._drawn.setdefault(repr(trial.settings), {})
        if follows in others:
            why = (
                f"trials of seeds {others[follows]} and {trial.seed} would be alike: model.init_seed and "
                "data.seed do not follow seed_everything\n"
                "write ${seed_everything} as value of one of them, or of both, under changes"
            )
            raise OptionError("seeds", list(self.sweep.seeds), why)
        others[follows] = trial.seed

    def _compose(self, trial: Trial) -> Recipe:
        base, *changes = trial.words(self.sweep.base, self.folder.path)
        return compose(base, changes)

    def _cost(
        self, trial: Trial, cli: RecipeCLI, config: dict[str, Any]
    ) -> tuple[TrialCost, StepCost | None, str]:
        """What a step of these settings costs, by the first seed, and why that is not known."""
        key = repr(trial.settings)
        if key not in self._known:
            with quiet():
                cost = TrialCost(config)
                self._known[key] = (cost, *self._step(cost, cli))
        return self._known[key]

    def _step(self, cost: TrialCost, cli: RecipeCLI) -> tuple[StepCost | None, str]:
        _, data = cli.model_and_data()
        if self.by_steps and not self.elsewhere:
            data.prepare_data()
        elif data.streams is not None or not data.has_train:
            return None, "the training data are not there yet"
        try:
            return cost.of_step(data), ""
        except OptionError:
            raise
        except ValueError as error:
            return None, str(error)


def _but_seeds(config: dict[str, Any]) -> str | None:
    """All that a recipe says but for name and seeds; None where a value needs the parser's defaults."""
    try:
        said: Any = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except OmegaConfBaseException:
        return None
    for group, key in (("model", "init_seed"), ("data", "seed"), ("run", "name")):
        said.get(group, {}).pop(key, None)
    return repr({key: value for key, value in said.items() if key != "seed_everything"})


def _refuse_schedule(budget: Budget, optimizer: dict[str, Any]) -> None:
    """Raise OptionError for a learning rate that needs to know the last step, which seconds do not tell."""
    if optimizer["schedule"] != "constant" or optimizer["warmup"] > 0:
        why = (
            f"a {optimizer['schedule']} schedule with a warm-up of {optimizer['warmup']:g} needs to know its "
            "last step\nchange model.optimizer.schedule to constant and model.optimizer.warmup to 0, or give "
            "another budget"
        )
        raise OptionError("seconds", budget.amount, why, "budget")
