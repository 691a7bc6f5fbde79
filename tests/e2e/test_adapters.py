"""Adapters from the command line: trained, opened, trained on, merged, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from helpers.stock_folders import edit_json, stock_folder

import v1lit
from v1lit.cli.main import main
from v1lit.testing.models import noise
from v1lit.training.saved_state import read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.dependencies]

SMALL = (
    "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.batch_size=2", "--data.num_workers=0",
    "--data.val_batch_size=2", "--data.source.options.examples=8", "--data.source.options.val_examples=2",
    "--run.report_examples=0", "--run.pictures=0", "--model.optimizer.name=adamw",
)  # fmt: skip
RUN = ("run", "tiny_qwen", *SMALL)
LORA = ("--model.adapter.kind=lora", "--model.adapter.rank=4", "--model.adapter.parts=[language,vision]")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint of one's own, in the folder where commands run."""
    monkeypatch.chdir(tmp_path)
    return f"--model.backbone.weights={stock_folder(tmp_path / 'base')}"


def test_from_a_checkpoint_of_ones_own_to_a_merged_model_and_on(
    base: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main([*RUN, base, *LORA, "--run.name=first"]) == 0, capfd.readouterr().err
    said = caplog.text
    capfd.readouterr()
    assert "model.adapter: lora of rank 4 on 24 layers: language *.self_attn.q_proj x 2" in said
    assert "numbers learn (" in said
    adapter = Path("runs/first/model")
    assert sum(path.stat().st_size for path in adapter.glob("*.safetensors")) < 400_000
    predictor = v1lit.load(adapter)
    answer = predictor(noise((112, 84)), "Where is it?", max_new_tokens=4)

    assert main(["export", "runs/first", "alone"]) == 0
    assert "tensors are equal to the checkpoint's, bit for bit" in capfd.readouterr().out
    for given, out in (("runs/first", "merged"), ("alone", "merged-too")):
        assert main(["export", given, out, "--merge"]) == 0
        assert "before and after merging differ by" in capfd.readouterr().out
    merged = v1lit.load("merged")
    assert merged(noise((112, 84)), "Where is it?", max_new_tokens=4).text == answer.text
    assert sum(path.stat().st_size for path in Path("merged").glob("*.safetensors")) > 1_000_000

    # Trained on: the adapter goes on where it was, and a run of the same name goes on where it stopped.
    on = (*RUN, f"--model.backbone.weights={adapter}", "--run.name=second")
    assert main([*on, "--trainer.max_steps=1"]) == 0, capfd.readouterr().err
    assert caplog.text.count("model.adapter: lora of rank 4") == 2
    resumed = ("--run.resume=last", "--trainer.max_steps=2")
    assert main([*on, *resumed]) == 0, capfd.readouterr().err
    before, after = (
        read_checkpoint(f"runs/{name}/checkpoints/last.ckpt")["state_dict"] for name in ("first", "second")
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_what_does_not_fit_ends_in_two_lines_before_anything_is_written(
    base: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: str) -> str:
        assert main([*RUN, base, *arguments, "--run.name=no"]) == 2
        err = capfd.readouterr().err
        assert len(err.strip().splitlines()) <= 2, err
        assert not Path("runs/no").exists()
        return err

    assert "model.adapter.rank is 0" in refused(*LORA, "--model.adapter.rank=0")
    assert "allowed: a list, each one of 'language'" in refused("--model.adapter.parts=[langage]")
    assert "unknown key 'model.adapter.r'" in refused("--model.adapter.r=8")
    assert "'*.qproj' matches no linear layer" in refused(*LORA, "--model.adapter.modules=['*.qproj']")
    frozen = refused(*LORA, "--model.backbone.freeze=[vision]")
    assert "model.backbone.freeze is ['vision'] (command line); model.adapter.parts names" in frozen
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install 'v1lit[adapters]'" in refused(*LORA)


def test_an_adapter_without_its_backbone_says_where_to_name_it(
    base: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, base, *LORA, "--run.name=first"]) == 0, capfd.readouterr().err
    adapter = Path("runs/first/model")
    Path("base").rename("moved")
    capfd.readouterr()
    assert main(["export", str(adapter), "merged", "--merge"]) == 2
    assert "base_model_name_or_path" in capfd.readouterr().err
    assert not Path("merged").exists()
    moved = str(tmp_path / "moved")
    assert main(["export", str(adapter), "merged", "--merge", "--backbone", moved]) == 0
    edit_json(adapter / "adapter_config.json", lambda content: content.update(base_model_name_or_path=moved))
    assert v1lit.load(adapter).model.base is not None
