"""`v1lit plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from v1lit.cli.main import main

pytestmark = pytest.mark.slow
SMALL = ("--trainer.strategy=ddp", "--nodes", "2", "--gpus-per-node", "4", "--data.batch_size=2")


def plan(*arguments: str) -> int:
    return main(["plan", "tiny_llava", *SMALL, *arguments])


def test_a_plan_says_what_is_held_how_fast_it_is_and_what_it_assumes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan("--gpu-memory", "10", "--examples", "9000") == 0
    shown = capsys.readouterr().out
    for words in (
        "2 x 4 GPUs", "embeddings and head", "moments of the optimizer", "fits: ", "largest micro-batch: ",
        "tokens per second", "GPU-hours", "assumed: ",
    ):  # fmt: skip
        assert words in shown


def test_a_plan_takes_its_time_from_lengths_of_the_data_and_its_memory_from_the_longest_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = str(tmp_path / "train")
    assert main(["data", "synth", "--out", shards, "--examples=40", "--look=shapes", "--workers=1"]) == 0
    data = (
        "--data.source.name=shards", "--data.source.options={}", f"--data.source.folder={tmp_path}",
        "--trainer.max_steps=-1", "--trainer.max_epochs=3",
    )  # fmt: skip

    def report(*arguments: str) -> Any:
        capsys.readouterr()
        assert plan(*data, *arguments, "--json") == 0
        return json.loads(capsys.readouterr().out)

    assumed = report()
    assert "has no table of lengths" in assumed["lengths"]["why"]
    assert main(["data", "index", shards, "--lengths", "tiny_llava", "--workers=1"]) == 0
    read = report()
    assert read["memory"] == assumed["memory"]
    lengths = read["lengths"]
    assert lengths["from"] == "tables"
    assert (lengths["examples_of_an_epoch"], lengths["steps_of_an_epoch"]) == (40, 3)
    assert read["speed"]["steps"] == 3 * 3
    tokens = 40 * lengths["tokens_of_an_example"]
    assert 3 * read["speed"]["tokens_per_step"] == pytest.approx(tokens, rel=0.01)
    assert read["speed"]["flops_per_gpu"] < assumed["speed"]["flops_per_gpu"]
    assert report("--tokens", "512")["speed"] == assumed["speed"]
    capsys.readouterr()
    assert plan(*data) == 0
    assert "by the tables of lengths of the recipe's data" in " ".join(capsys.readouterr().out.split())


def test_a_plan_that_does_not_fit_says_what_to_change_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--gpu-memory", "0.04", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["fits"]
    assert report["changes"][0]["what"].startswith("--model.backbone.gradient_checkpointing")
    assert report["memory"]["total"] > report["changes"][0]["total"]


def test_the_scale_is_a_table_of_numbers_of_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--scale", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["gpus"] for row in rows] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert rows[-1]["tokens_per_step"] == 128 * rows[0]["tokens_per_step"]
    assert plan("--scale") == 0
    assert "| 1,024 | 256 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "0"], "--nodes: '0' is no number; give 1 or more"),
        (["--gpu-memory", "much"], "--gpu-memory: 'much' is no positive number"),
        (["--mfu", "1.5"], "--mfu: '1.5' is no share"),
        (["--link", "450"], "--link: '450' is not two numbers"),
        (["--image", "wide"], "--image: 'wide' is no size in pixels"),
        (["--gpu", "Abacus"], "--gpu=Abacus: no peak in float32 is known"),
        (["--tokens", "3"], "--tokens is 3; an example has"),
        (["--trainer.strategy=deepspeed"], "trainer.strategy is 'deepspeed'"),
        (["--scale", "--gpus-per-node", "3"], "--gpus-per-node is 3; --scale counts 8, 16, 32"),
        (["--trainer.strategy=fsdp2", "--trainer.precision=16-mixed"], "no loss scale"),
        (["--trainer.devices=auto", "--gpus-per-nod", "8"], "gpus-per-nod"),
    ],
)
def test_wrong_input_is_refused_by_the_name_of_its_flag(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_config_is_taken_in_place_of_weights_that_are_not_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from v1lit.plan.architecture import published_sizes

    content = published_sizes()["llava-hf/llava-1.5-7b-hf"]
    content["text_config"]["num_hidden_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(content))
    path = str(tmp_path / "config.json")
    assert plan("--config", path, "--model.backbone.weights=me/mine", "--tokens", "700", "--json") in (0, 1)
    parameters = json.loads(capsys.readouterr().out)["parameters"]
    assert parameters["embeddings and head"]["all"] == 2 * 32064 * 4096
