"""A run on a mixture of words, one picture, several, no boxes and several answers, from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from helpers.mixed_sources import KINDS, write_sources

from v1lit.cli.main import main

pytestmark = [pytest.mark.dependencies, pytest.mark.slow]


def mixture_file(folder: Path) -> Path:
    """A recipe part that names the sources, the last by hand."""
    mixture = [{"shards": source.shards, "val": source.val} for source in write_sources(folder, 8, 3)]
    mixture[-1]["name"] = "by_hand"
    path = folder / "mixture.yaml"
    path.write_text(yaml.safe_dump({"name": "shards", "mixture": mixture}))
    return path


@pytest.mark.parametrize("loss", ["joint", "separate"])
def test_every_source_is_measured_by_itself(
    loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {
        "data.source": str(mixture_file(tmp_path)), "data.batch_size": 4, "data.num_workers": 0,
        "data.packing.length": 512, "trainer.max_steps": 4, "trainer.val_check_interval": 4,
        "trainer.log_every_n_steps": 2, "trainer.accumulate_grad_batches": 2, "trainer.accelerator": "cpu",
        "run.name": "mixed", "run.report_examples": 4, "run.report_max_new_tokens": 4, "run.pictures": 1,
        "model.pointer.loss": loss, "model.pointer.z_weight": 0.0,
    }  # fmt: skip
    given = [f"--{key}={value}" for key, value in options.items()]
    assert main(["run", "tiny_qwen", *given]) == 0
    run, sources = tmp_path / "runs" / "mixed", [*list(KINDS)[:-1], "by_hand"]
    with next(run.glob("csv/metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    logged = {name for row in rows for name, value in row.items() if value}
    metrics = json.loads((run / "metrics.json").read_text())
    parts = ["loss_joint"] if loss == "joint" else ["loss_text"]
    for source in sources:
        wanted = {f"{split}/{name}/{source}" for split in ("train", "val") for name in ("loss", *parts)}
        wanted |= {f"train/text_accuracy/{source}", f"val/forced_text_accuracy/{source}"}
        assert wanted <= logged
        assert wanted <= metrics.keys()
        points = source in ("pointed", "by_hand")
        for name in ("train/pointer_accuracy", "val/forced_region_iou"):
            assert (f"{name}/{source}" in logged) is points
    # The best checkpoint is the only one: what metrics.json has is what was logged.
    last = next(row for row in reversed(rows) if row.get("val/loss"))
    for name in ("val/loss", *(f"val/loss/{source}" for source in sources)):
        assert metrics[name] == pytest.approx(float(last[name]), rel=1e-5)
    if loss != "joint":
        return
    # Made again, without training, it is the same.
    assert main(["report", str(run), "--output", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert {n: v for n, v in again.items() if "/loss" in n} == pytest.approx(
        {n: v for n, v in metrics.items() if "/loss" in n}
    )
    names = {file.name for file in run.glob("tensorboard/*")}
    assert any(name.startswith("events.") for name in names)


def test_a_source_that_is_watched_must_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    path = mixture_file(tmp_path)
    watch = [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {}}]
    for name, code in (("val/loss/wrods", 2), ("val/loss/words", 0)):
        watch[0]["init_args"] = {"monitor": name}
        given = [
            f"--data.source={path}", f"--trainer.callbacks={json.dumps(watch)}", "--trainer.max_steps=1",
            "--run.report_examples=0", "--run.export=false", "--trainer.accelerator=cpu",
            "--data.batch_size=2", f"--run.name={code}",
        ]  # fmt: skip
        assert main(["run", "tiny_qwen", *given]) == code
    assert "did you mean 'val/loss/words'?" in capfd.readouterr().err
