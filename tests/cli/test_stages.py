"""Stages of a recipe: composed in order, trained one after another, mistakes told with stage and place."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from v1lit.cli import launch, stage_recipes, stages
from v1lit.cli.errors import UserError
from v1lit.cli.main import main
from v1lit.cli.recipe import Recipe, compose, compose_all, stages_of
from v1lit.cli.stage_entries import FOLLOWED
from v1lit.cli.stage_marks import FILE, write_mark

pytestmark = pytest.mark.dependencies

TWO = """
base: tiny_llava
trainer: {max_steps: 7}
model: {begin_from: before/model}
stages:
  projector:
    model: {backbone: {freeze: [vision, language]}, optimizer: part.yaml}
    trainer: {max_steps: 3}
  whole:
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "part.yaml").write_text("lr: 0.25\n")
    (tmp_path / "two.yaml").write_text(TWO)
    return "two.yaml"


def written(text: str) -> str:
    Path("other.yaml").write_text(text)
    return "other.yaml"


# ---------------------------------------------------------------- composing


def test_stages_change_the_recipe_in_their_order(recipe: str) -> None:
    assert stages_of(recipe) == ("projector", "whole")
    first, second = compose_all(recipe)
    assert first.config["model"]["backbone"]["freeze"] == ["vision", "language"]
    assert first.config["model"]["optimizer"] == {"lr": 0.25}  # a part replaces a whole group here too
    assert second.config["model"]["optimizer"]["name"] == "muon"
    assert [one.config["trainer"]["max_steps"] for one in (first, second)] == [3, 7]
    assert [one.stage.folder for one in (first, second) if one.stage] == ["1-projector", "2-whole"]
    assert first.origin("model.optimizer.lr") == "part.yaml"
    assert first.origin("trainer.max_steps") == "two.yaml"


def test_only_the_first_stage_begins_from_what_the_recipe_names(recipe: str) -> None:
    begun = [one.config["model"].get("begin_from") for one in compose_all(recipe)]
    assert begun == ["before/model", None]
    begun = [one.config["model"].get("begin_from") for one in compose_all(recipe, ["--model.begin_from=x"])]
    assert begun == ["x", None]
    own = compose(recipe, ["--stages.whole.model.begin_from=y", "--run.stage=whole"])
    assert own.config["model"]["begin_from"] == "y"


def test_what_is_typed_is_of_every_stage_unless_one_is_named(recipe: str) -> None:
    changes = ["--stages.whole.trainer.max_steps=9", "--trainer.max_steps=2", "--data.seed=4"]
    steps = [
        (one.config["trainer"]["max_steps"], one.config["data"]["seed"])
        for one in compose_all(recipe, changes)
    ]
    assert steps == [(2, 4), (9, 4)]
    assert compose_all(recipe, changes)[1].origin("trainer.max_steps") == "command line"


def test_a_recipe_on_top_changes_single_keys_of_a_stage_and_adds_others(recipe: str) -> None:
    on_top = written(
        "base: two.yaml\nstages: {projector: {trainer: {max_steps: 5}}, last: {data: {seed: 8}}}\n"
    )
    first, _, last = compose_all(on_top)
    assert first.config["trainer"]["max_steps"] == 5
    assert first.config["model"]["backbone"]["freeze"] == ["vision", "language"]
    assert last.config["data"]["seed"] == 8
    cleared = written("base: two.yaml\nstages: {projector: {}}\n")
    assert compose_all(cleared)[0].config["trainer"]["max_steps"] == 7
    assert stages_of(written("base: two.yaml\nstages: {}\n")) == ()
    assert [one.stage for one in compose_all(recipe, ["--stages={}"])] == [None]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stages: [a, b]", "other.yaml: stages is ['a', 'b']; give a mapping"),
        ("stages: {a.b: {}}", "other.yaml: stages.a.b: a name has letters"),
        ("stages: {a: 3}", "other.yaml: stages.a is 3; give a mapping"),
        ("stages: {a: {run: {name: x}}}", "stages.a.run.name: it is of all stages"),
        ("stages: {a: {stages: {b: {}}}}", "stages.a.stages: it is of all stages"),
        (
            "stages: {a: {model: {optimizer: no.yaml}}}",
            "other.yaml: model.optimizer: there is no part 'no.yaml'",
        ),
    ],
)
def test_a_mistake_in_stages_names_file_and_key(text: str, told: str, recipe: str) -> None:
    with pytest.raises(UserError) as refused:
        compose_all(written(f"base: tiny_llava\n{text}\n"))
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("--stages.hole.data.seed=1", "no 'hole'; did you mean 'whole'?"),
        ("--stages.whole.run.resume=last", "give --run.resume"),
        ("--run.stage=hole", "run.stage is 'hole'; did you mean 'whole'?"),
    ],
)
def test_a_mistake_in_what_is_typed_names_the_stages(change: str, told: str, recipe: str) -> None:
    with pytest.raises(UserError) as refused:
        compose_all(recipe, [change])
    assert told in str(refused.value)


@pytest.mark.parametrize("command", [["data", "stats"], ["doctor", "--packing"], ["plan", "--json"]])
def test_what_takes_one_run_asks_for_the_stage(command: list[str], recipe: str, capfd: Any) -> None:
    assert main([*command, recipe]) == 2
    said = capfd.readouterr().err
    assert "two.yaml has the stages projector, whole, and this is done with one" in said
    assert "--run.stage=projector" in said


def test_run_stage_needs_stages() -> None:
    with pytest.raises(UserError, match="has no stages"):
        compose("tiny_llava", ["--run.stage=whole"])


def test_a_sweep_takes_the_recipe_that_a_stage_has_left(recipe: str, capfd: Any) -> None:
    Path("sweep.yaml").write_text("base: two.yaml\nbudget: {steps: 2}\naxes: {model.optimizer.lr: [1, 2]}\n")
    assert main(["sweep", "sweep.yaml", "--dry-run"]) == 2
    assert "has the stages projector, whole" in (said := capfd.readouterr().err)
    assert "runs/NAME/2-whole/recipe.yaml" in said


# ---------------------------------------------------------------- one after another


class Runs:
    """In place of the processes of stages: notes their commands, and leaves what a stage leaves."""

    def __init__(self) -> None:
        self.words: list[list[str]] = []
        self.codes: dict[str, int] = {}

    def __call__(self, words: Sequence[str]) -> int:
        assert os.environ[FOLLOWED]
        self.words.append(list(words))
        one = compose(words[0], [word for word in words[1:] if word != "--debug"])
        assert one.stage is not None
        run = stage_recipes.whole_run(one)
        place = Path(run.folder) / str(run.name) / one.stage.folder
        place.mkdir(parents=True, exist_ok=True)
        (place / "recipe.yaml").touch()
        if (code := self.codes.pop(one.stage.name, 0)) == 0:
            write_mark(place, one)
        return code

    @property
    def told(self) -> list[str]:
        """The stages that were run."""
        return [word.partition("=")[2] for words in self.words for word in words if "run.stage" in word]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    made = Runs()
    monkeypatch.setattr(stages, "start", made)
    return made


def test_stages_run_in_order_and_a_second_time_all_is_done(recipe: str, runs: Runs, capsys: Any) -> None:
    assert main(["run", recipe, "--run.name=x", "--data.seed=4", "--debug"]) == 0
    assert runs.words[1] == [recipe, "--data.seed=4", "--run.name=x", "--debug", "--run.stage=whole"]
    assert runs.told == ["projector", "whole"]
    assert "stage 2 of 2, whole: runs/x/2-whole" in capsys.readouterr().out
    assert main(["run", recipe, "--run.name=x", "--data.seed=4", "--run.resume=auto"]) == 0
    assert runs.told == ["projector", "whole"]
    assert "all stages are done" in capsys.readouterr().out
    assert FOLLOWED not in os.environ


def test_a_run_goes_on_with_the_stage_in_which_it_has_stopped(recipe: str, runs: Runs, capfd: Any) -> None:
    runs.codes = {"whole": 137}
    assert main(["run", recipe, "--run.name=x"]) == 137
    assert "stage whole was ended by SIGKILL" in (said := capfd.readouterr().err)
    assert "--run.name=x --run.resume=auto" in said
    assert main(["run", recipe, "--run.name=x", "--run.resume=last"]) == 0
    assert runs.told == ["projector", "whole", "whole"]
    assert "--run.resume=auto" in runs.words[-1]


def test_a_run_without_a_name_gets_one_for_all_stages(recipe: str, runs: Runs) -> None:
    assert main(["run", recipe]) == 0
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("two-")
    assert sorted(path.name for path in run.iterdir()) == ["1-projector", "2-whole"]


def test_a_first_stage_that_fails_leaves_no_empty_folder(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "start", lambda words: 2)
    assert main(["run", recipe]) == 2
    assert not list(Path("runs").iterdir())


def test_a_changed_recipe_of_a_done_stage_is_refused_and_that_of_the_last_is_trained_on(
    recipe: str, runs: Runs, capfd: Any
) -> None:
    again = ["run", recipe, "--run.name=x", "--run.resume=auto"]
    assert main(again) == 0
    assert main([*again, "--stages.projector.trainer.max_steps=4"]) == 2
    said = capfd.readouterr().err
    assert "stage projector is done, and its recipe has changed since" in said
    assert "trainer.max_steps was 3 and is 4 (command line)" in said
    assert main([*again, "--stages.projector.trainer.devices=2"]) == 0  # of each job
    assert runs.told == ["projector", "whole"]
    assert main([*again, "--stages.whole.trainer.max_steps=20"]) == 0
    assert runs.told == ["projector", "whole", "whole"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["--run.name=x"], "runs/x holds a run already"),
        (["--run.name=y", "--run.resume=last"], "no stage has begun in runs/y"),
        (["--run.name=x", "--run.resume=a.ckpt"], "or train one stage by itself, with --run.stage=projector"),
        (["--run.resume=last"], "give run.name"),
        (["--run.name=x", "--run.stage=projector"], "the stage has begun there already"),
        (["--run.name=y", "--run.stage=whole"], "not done in runs/y"),
        (["--run.stage=whole"], "--stages.whole.model.begin_from=FOLDER"),
        (["--run.name=x", "--run.stage=whole", "--run.resume=auto"], "1-projector/model, which is not there"),
    ],
)
def test_folders_that_cannot_be_are_refused(
    changes: list[str], told: str, recipe: str, runs: Runs, capfd: Any
) -> None:
    assert main(["run", recipe, "--run.name=x"]) == 0
    Path("runs/x/2-whole", FILE).unlink()
    capfd.readouterr()
    assert main(["run", recipe, *changes]) == 2
    assert told in capfd.readouterr().err


def test_ranks_of_another_launcher_are_sent_to_single_stages(
    recipe: str, runs: Runs, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["run", recipe, "--run.name=x"]) == 2
    assert "--run.stage=projector first" in capfd.readouterr().err
    assert runs.told == []


def test_a_mark_that_is_damaged_is_named(recipe: str, runs: Runs, capfd: Any) -> None:
    assert main(["run", recipe, "--run.name=x"]) == 0
    Path("runs/x/1-projector", FILE).write_text("{")
    assert main(["run", recipe, "--run.name=x", "--run.resume=auto"]) == 2
    assert "done.json cannot be read" in capfd.readouterr().err


@pytest.mark.parametrize("command", [["report", "runs/x"], ["export", "runs/x", "out"]])
def test_of_a_run_of_stages_one_is_asked_for(command: list[str], recipe: str, runs: Runs, capfd: Any) -> None:
    assert main(["run", recipe, "--run.name=x"]) == 0
    assert main(command) == 2
    assert "give one of them: runs/x/1-projector, runs/x/2-whole" in capfd.readouterr().err


# ---------------------------------------------------------------- shown, planned, launched


@pytest.mark.slow
def test_every_stage_is_printed_as_it_will_be(recipe: str, capsys: Any) -> None:
    Path("two.yaml").write_text(TWO.replace("model: {begin_from: before/model}\n", ""))
    assert main(["run", recipe, "--run.name=x", "--print_config"]) == 0
    first, second = yaml.safe_load_all(text := capsys.readouterr().out)
    assert "--- # stage whole" in text
    assert first["model"]["begin_from"] is None
    assert second["model"]["begin_from"] == "runs/x/1-projector/model"
    assert [one["run"]["name"] for one in (first, second)] == ["1-projector", "2-whole"]
    assert [one["trainer"]["max_steps"] for one in (first, second)] == [3, 7]


def test_a_command_goes_through_the_stages_that_differ_in_what_it_looks_at(recipe: str, capsys: Any) -> None:
    seen: list[list[str]] = []

    def command(argv: Sequence[str]) -> int:
        seen.append(list(argv))
        return len(seen)

    assert stage_recipes.each_stage(command, [recipe, "--x"], recipe, []) == 2
    assert seen == [[recipe, "--x", "--run.stage=projector"], [recipe, "--x", "--run.stage=whole"]]
    assert stage_recipes.each_stage(command, [recipe], recipe, [], alike=("data",)) == 3
    assert "stage whole: as stage projector" in capsys.readouterr().out
    changes = ["--stages.whole.data.seed=1"]
    assert stage_recipes.each_stage(command, [recipe, *changes], recipe, changes, alike=("data",)) == 5
    assert stage_recipes.each_stage(command, [recipe], recipe, ["--run.stage=whole"]) is None
    assert stage_recipes.each_stage(command, ["tiny_llava"], "tiny_llava", []) is None


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands of nodes, in place of the nodes."""
    commands: list[list[str]] = []

    def run_local(least: int, most: int, command: Callable[[int], Sequence[str]]) -> int:
        commands.append(list(command(0)))
        return 0

    monkeypatch.setattr("v1lit.launch.local.run_local", run_local)
    monkeypatch.setattr("v1lit.processes.end_with_launcher", lambda: None)
    return commands


def test_a_launcher_goes_from_stage_to_stage(recipe: str, launched: list[list[str]]) -> None:
    assert launch.main(["local", recipe, "--nodes=2", "--procs=1", "--run.name=x"]) == 0
    assert [[word for word in words if "run.stage" in word] for words in launched] == [
        ["--run.stage=projector"],
        ["--run.stage=whole"],
    ]
    assert all("--run.resume=auto" in words for words in launched)


def test_on_every_node_a_stage_is_a_launch_of_its_own(recipe: str, launched: list[list[str]]) -> None:
    node = ["node", recipe, "--nodes=2", "--procs=1", "--host=h", "--number=1", "--launch=job", "--port=40"]
    assert launch.main([*node, "--run.name=x"]) == 0
    kept = [
        [word for word in words if word.startswith(("--port", "--launch=", "--number"))] for words in launched
    ]
    assert kept == [
        ["--port=40", "--number=1", "--launch=job-projector"],
        ["--port=41", "--number=1", "--launch=job-whole"],
    ]


def test_a_stage_that_is_done_is_not_launched(recipe: str, launched: list[list[str]]) -> None:
    place = Path("runs/x/1-projector")
    place.mkdir(parents=True)
    write_mark(place, first_of(recipe))
    assert launch.main(["local", recipe, "--nodes=1", "--procs=1", "--run.name=x"]) == 0
    assert len(launched) == 1
    assert "--run.stage=whole" in launched[0]
    assert launch.main(["local", recipe, "--nodes=1", "--procs=1", "--run.name=y", "--run.resume=auto"]) == 0


def first_of(recipe: str) -> Recipe:
    return compose_all(recipe)[0]
