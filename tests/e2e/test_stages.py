"""A shipped recipe with stages, trained: what learns in each, where each begins, what a kill leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from v1lit.backbones.load import part_parameters
from v1lit.cli import stages
from v1lit.cli.main import main
from v1lit.cli.recipe import compose
from v1lit.cli.stage_entries import FOLLOWED
from v1lit.pointer.model import PointAndCopyModel
from v1lit.training.resuming import weights_content

pytestmark = [pytest.mark.slow, pytest.mark.dependencies, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]

RECIPE = """
base: tiny_llava_stages
seed_everything: 3
trainer:
  val_check_interval: 2
  check_val_every_n_epoch: 1
  enable_progress_bar: false
  logger: false
  callbacks: [{class_path: watching_stages.Watching}]
model: {backbone: {attention: sdpa}}
data:
  batch_size: 2
  val_batch_size: 2
  num_workers: 0
  source: {options: {examples: 8, val_examples: 2}}
run: {report_examples: 0, peak_tflops: 1, checkpoint_every: 1}
stages:
  projector:
    model: {backbone: {freeze: [vision, language, pointer]}}
    trainer: {max_steps: 2, val_check_interval: 2}
  whole:
    trainer: {max_steps: 4}
"""

CALLBACK = '''
import os, signal
from pathlib import Path
import torch
from lightning import Callback

class Watching(Callback):
    """Keeps what a run begins from and the names of its examples; kills it where it is told to."""

    def on_fit_start(self, trainer, module):
        begin = Path(trainer.default_root_dir, "begin.pt")
        if not begin.exists():
            torch.save({name: own.clone() for name, own in module.model.state_dict().items()}, begin)

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        with open(Path(trainer.default_root_dir, "examples.txt"), "a") as file:
            file.write(" ".join(batch.ids) + "\\n")

    def on_train_batch_start(self, trainer, module, batch, index):
        kill = Path("kill")
        if kill.exists() and trainer.global_step == int(kill.read_text()):
            kill.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
'''


def here(words: Sequence[str]) -> int:
    """A stage in this process, to spare the imports of another one."""
    return main(["run", *words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where all runs lie; `runs/whole` was not interrupted."""
    made = tmp_path_factory.mktemp("stages")
    (made / "two.yaml").write_text(RECIPE)
    (made / "watching_stages.py").write_text(CALLBACK)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.setattr(stages, "start", here)
        assert main(["run", "two.yaml", "--run.name=whole"]) == 0
        yield made


def export(run: Path, stage: str) -> dict[str, Tensor]:
    """The weights that a stage has left, by the model's names."""
    model = PointAndCopyModel.from_pretrained(run / stage / "model")
    return dict(model.state_dict())


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_only_the_projector_learns_first_and_the_whole_goes_on_from_it_bit_for_bit(folder: Path) -> None:
    run = folder / "runs" / "whole"
    begins = [torch.load(run / stage / "begin.pt", weights_only=True) for stage in ("1-projector", "2-whole")]
    first, second = (export(run, stage) for stage in ("1-projector", "2-whole"))
    model = PointAndCopyModel.from_pretrained(run / "1-projector" / "model")
    projector = part_parameters(model.backbone, model.family, "projector")
    assert changed(begins[0], first) == {f"backbone.{name}" for name in projector}
    assert changed(first, begins[1]) == set()
    learned = changed(begins[1], second)
    assert {name.split(".")[0] for name in learned} == {"backbone", "pointer_head"}
    assert len(learned) > 40


def test_each_stage_reads_the_data_from_the_beginning_in_the_order_of_its_seed(folder: Path) -> None:
    run = folder / "runs" / "whole"
    read = [(run / stage / "examples.txt").read_text().splitlines() for stage in ("1-projector", "2-whole")]
    assert [len(lines) for lines in read] == [2, 4]
    assert read[1][:2] == read[0]


def test_stopped_between_stages_and_killed_in_one_ends_with_the_same_weights(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert here(["two.yaml", "--run.name=cut", "--run.stage=projector"]) == 0
    assert not (folder / "runs/cut/2-whole").exists()
    (folder / "kill").write_text("2")
    command = [sys.executable, "-m", "v1lit.cli.lightning", "run", "two.yaml", "--run.name=cut"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--run.resume=auto"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 137, done.stderr
    assert "stage 1 of 2, projector: done, in runs/cut/1-projector" in done.stdout
    assert "stage whole was ended by SIGKILL" in done.stderr
    capfd.readouterr()
    assert here(["two.yaml", "--run.name=cut", "--run.resume=auto"]) == 0
    for stage in ("1-projector", "2-whole"):
        files = [folder / "runs" / run / stage / "model/model.safetensors" for run in ("cut", "whole")]
        weights, expected = map(load_file, files)
        assert changed(expected, weights) == set(), stage
    assert here(["two.yaml", "--run.name=cut", "--run.resume=auto"]) == 0
    assert "stage 2 of 2, whole: done" in capfd.readouterr().out


def test_a_kill_before_the_mark_has_only_the_results_made_again(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = folder / "runs/whole/1-projector"
    before = (first / "model/model.safetensors").read_bytes()
    (first / "done.json").unlink()
    assert here(["two.yaml", "--run.name=whole", "--run.resume=auto"]) == 0
    assert (first / "model/model.safetensors").read_bytes() == before
    assert len((first / "examples.txt").read_text().splitlines()) == 2  # nothing was trained
    assert "stage 2 of 2, whole: done" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("--stages.whole.model.freeze=[no.such.*]", "model.freeze"),
        ("--stages.whole.data.source={name: shards, folder: nothing, options: {}}", "data.source.folder"),
        ("--stages.whole.model.pointer.width=16", "model.pointer.width is 16"),
        (
            "--stages.whole.model.backbone.freeze=[vision,projector,language,pointer]",
            "no trainable parameter",
        ),
        ("--stages.projector.run.export=false", "run.export"),
    ],
)
def test_a_mistake_in_a_later_stage_is_found_before_the_first_begins(
    change: str, told: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(FOLLOWED, "1")
    assert main(["run", "two.yaml", "--run.name=wrong", "--run.stage=projector", change]) == 2
    said = capfd.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: stage {'projector' if 'export' in change else 'whole'}: ")
    assert told in said
    assert not (folder / "runs" / "wrong").exists()


def test_a_model_that_is_no_longer_what_the_stage_has_left_is_refused(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = folder / "runs/whole/1-projector/model/model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-4] + b"\1\2\3\4")
    weights_content.cache_clear()  # as in a new process
    again = ["--run.name=whole", "--run.stage=whole", "--run.resume=auto", "--stages.whole.data.seed=9"]
    try:
        assert main(["run", "two.yaml", *again]) == 2
    finally:
        weights.write_bytes(before)
    assert "which holds other weights than the stage has left" in capfd.readouterr().err


def test_what_a_stage_has_left_runs_by_itself() -> None:
    saved = compose("runs/whole/2-whole/recipe.yaml")
    assert saved.stage is None
    assert saved.config["model"]["begin_from"] == str(Path.cwd() / "runs/whole/1-projector/model")
