"""Every shipped recipe parses, holds the published settings, and trains on its family's tiny version."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image, ImageDraw

from v1lit.backbones.registry import BUILTIN, get_backbone
from v1lit.cli.main import main
from v1lit.cli.recipe import compose, compose_all, shipped, shipped_recipes
from v1lit.cli.recipe_cli import RecipeCLI
from v1lit.cli.run_folder import VARIABLE as RUN_FOLDER
from v1lit.plan.architecture import published_sizes

pytestmark = pytest.mark.dependencies

STAGES = ("tiny_llava_stages", "llava_stages_v1g")
ADAPTED = ("qwen_lora_v1g", "qwen_qlora_v1g")
PLAIN = tuple(name for name in shipped_recipes() if name not in (*STAGES, *ADAPTED))
TINY = tuple(name for name in PLAIN if name.startswith("tiny_") and name != "tiny_qwen_real")
V1G = tuple(name for name in PLAIN if name.endswith("_v1g"))
FEW = [
    "--run.report_examples=2",
    "--run.report_batch_size=2",
    "--run.report_max_new_tokens=4",
    "--run.pictures=1",
]
SMALL = [
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.check_val_every_n_epoch=1",
    "--data.batch_size=2",
    "--data.val_batch_size=2",
    "--data.num_workers=0",
    *FEW,
]
ON_ONE_CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto"]


@pytest.fixture
def resolved(capsys) -> Callable[..., dict]:
    def resolved(*arguments: str) -> dict:
        assert main(["run", *arguments, "--print_config"]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    return resolved


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """A folder of parquet files in the published row format: 16 rows to train on and 4 to validate on."""
    folder = tmp_path_factory.mktemp("v1g")
    write_rows(folder / "train-00000-of-00001.parquet", 16)
    write_rows(folder / "val-00000-of-00001.parquet", 4)
    return folder


def write_rows(path: Path, number: int) -> None:
    rows = [row(f"{path.stem}_{index}", 10 * (index % 5)) for index in range(number)]
    pq.write_table(pa.Table.from_pylist(rows), path)


def row(name: str, left: int) -> dict:
    image = Image.new("RGB", (112, 84), "white")
    box = [left, 20, left + 40, 60]
    ImageDraw.Draw(image).rectangle(box, fill="red")
    data = io.BytesIO()
    image.save(data, "PNG")
    call = 'detect(query="red box", objects=["<obj1><|region_1|>"])'
    trace = f"<think>I look. {call} Here.</think><answer>one</answer>"
    return {
        "id": name,
        "image": {"bytes": data.getvalue(), "path": f"{name}.png"},
        "conversations": [{"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": trace}],
        "regions": json.dumps({"<|region_1|>": box}),
        "image_size": [112, 84],
        "num_tokens": 60,
    }


# ---------------------------------------------------------------- every file


def test_the_recipes_of_the_readme_are_shipped():
    assert set(shipped_recipes()) == {*TINY, "tiny_qwen_real", *V1G, *STAGES, *ADAPTED}


@pytest.mark.parametrize("path", shipped_recipes().values(), ids=str)
def test_a_recipe_begins_with_what_it_is_and_how_to_run_it(path):
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    assert first.startswith("# ")
    assert second.startswith(f"# Run: lightning run recipes/{path.name}")


def test_no_part_is_left_over_and_all_are_parsed():
    composed = [recipe for path in shipped_recipes().values() for recipe in compose_all(str(path))]
    used = {Path(origin).resolve() for recipe in composed for origin in recipe.origins.values()}
    on_top = {path.resolve() for path in shipped("configs").glob("trainer/*.yaml")}
    assert used | on_top == {path.resolve() for path in shipped("configs").rglob("*.y*ml")} | used


@pytest.mark.parametrize(
    "path", sorted(shipped("configs").glob("trainer/*.yaml")), ids=lambda path: path.stem
)
def test_every_trainer_part_can_be_put_on_top_of_a_recipe(path):
    key = "trainer.callbacks" if path.stem == "profile" else "trainer"
    assert RecipeCLI(compose("qwen_v1g", [f"--{key}={path}"]), parse_only=True).config["trainer"]


@pytest.mark.parametrize("name", ["ddp", "fsdp", "hsdp", "fsdp_tp", "fsdp_cp", "deepspeed_zero3"])
def test_every_part_for_a_cluster_keeps_the_published_step(name):
    part = shipped("configs") / "trainer" / f"{name}.yaml"
    trainer = RecipeCLI(compose("qwen_v1g", [f"--trainer={part}"]), parse_only=True).config["trainer"]
    options = trainer["strategy"]["init_args"] if name in ("fsdp_tp", "fsdp_cp") else {}
    alike = options.get("tensor", 1) * options.get("context", 1)
    readers = trainer["devices"] * trainer["num_nodes"] // alike
    assert readers * trainer["accumulate_grad_batches"] * 2 == 64


def test_a_strategy_may_be_given_with_its_options():
    changes = [
        "--trainer.strategy.class_path=v1lit.training.strategies.Sharded",
        "--trainer.strategy.init_args.shard=node",
        "--trainer.strategy.init_args.reduce_every_micro_batch=true",
    ]
    config = RecipeCLI(compose("qwen_v1g", changes), parse_only=True).config
    assert config["trainer"]["strategy"]["init_args"]["shard"] == "node"


# ---------------------------------------------------------------- the published run


@pytest.mark.parametrize("name", V1G)
def test_the_published_settings(name, resolved):
    recipe = resolved(name)
    model, data, trainer = recipe["model"], recipe["data"], recipe["trainer"]
    assert model["optimizer"]["lr"] == 3e-5
    assert model["optimizer"]["betas"] == [0.9, 0.95]
    assert model["optimizer"]["schedule"] == "linear"
    assert model["optimizer"]["warmup"] == 0.03
    assert model["pointer"]["z_weight"] == 1e-5
    assert model["backbone"]["gradient_checkpointing"] == ["language", "vision"]
    assert model["backbone"]["image"]["max_side"] == 672
    assert data["encoding"]["max_tokens"] == 8192
    assert data["batch_size"] == 2
    assert data["source"]["name"] == "v1g"
    assert trainer["accumulate_grad_batches"] == 4
    assert trainer["devices"] * trainer["num_nodes"] == 8
    assert trainer["precision"].startswith("bf16")
    assert trainer["gradient_clip_val"] == 0.5
    assert trainer["max_epochs"] == 5


@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_are_trained_on_one_gpu_by_the_published_step(name, resolved):
    recipe = resolved(name)
    model, trainer = recipe["model"], recipe["trainer"]
    published = resolved("qwen_v1g")
    assert f"qwen_{model['adapter']['kind']}_v1g" == name
    assert model["backbone"] == {**published["model"]["backbone"], "dtype": "bfloat16"}
    assert model["pointer"] == published["model"]["pointer"]
    assert (trainer["devices"], trainer["precision"]) == (1, "bf16-mixed")
    assert trainer["accumulate_grad_batches"] * recipe["data"]["batch_size"] == 64


def test_the_stages_of_llava_have_its_rates_and_examples_per_step():
    """Source: haotian-liu/LLaVA, scripts/v1_5/pretrain.sh and finetune.sh."""
    configs = [RecipeCLI(recipe, parse_only=True).config for recipe in compose_all("llava_stages_v1g")]
    optimizers = [config["model"]["optimizer"] for config in configs]
    assert [one["lr"] for one in optimizers] == [1e-3, 2e-5]
    alike = [(one["schedule"], one["warmup"], one["weight_decay"]) for one in optimizers]
    assert alike == [("cosine", 0.03, 0.0)] * 2
    trainers = [config["trainer"] for config in configs]
    assert [2 * 8 * one["accumulate_grad_batches"] for one in trainers] == [256, 128]
    assert [config["model"]["backbone"]["freeze"] for config in configs] == [["vision", "language"], []]


def test_the_weights_are_of_the_recipes_family_and_each_family_has_a_recipe(resolved):
    backbones = [resolved(name)["model"]["backbone"] for name in V1G]
    types = [published_sizes()[backbone["weights"]]["model_type"] for backbone in backbones]
    assert types == [get_backbone(backbone["name"]).model_type for backbone in backbones]
    assert {backbone["name"] for backbone in backbones} == set(BUILTIN)


# ---------------------------------------------------------------- two steps of each


def shown(recorded: Iterable[warnings.WarningMessage]) -> list[str]:
    """Warnings that Python would write to a person's screen, where it is not told otherwise."""
    hidden = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
    return [str(one.message) for one in recorded if not issubclass(one.category, hidden)]


def the_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_tiny_recipe_trains_and_its_saved_recipe_runs_again(
    name, tmp_path, monkeypatch, capfd, caplog, recwarn
):
    monkeypatch.chdir(tmp_path)
    small = ["--data.source.options.examples=8", "--data.source.options.val_examples=2"]
    newer = "newer than tested: torch 99.0" if name == "tiny_llava" else None
    monkeypatch.setattr("v1lit.cli.recipe_cli.newer_line", lambda: newer)
    assert main(["run", name, *SMALL, *small]) == 0, capfd.readouterr().err
    run = the_run(tmp_path)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["train/steps"] == 2
    assert {
        "val/pointer_first_in_region",
        "val/region_iou",
        "chance/pointer_first_in_region",
        "train/seconds",
    } <= set(metrics)
    assert (run / "model" / "model.safetensors").is_file()
    assert list((run / "pictures").glob("*.png"))
    saved = (run / "recipe.yaml").read_text()
    for words in ("# command: v1lit run", "# seed: ", "# git: ", "# torch: ", "# v1lit: "):
        assert words in saved
    out, err = capfd.readouterr()
    assert str(run.relative_to(tmp_path)) in out
    assert "Warning" not in err
    assert caplog.messages.count("newer than tested: torch 99.0") == (name == "tiny_llava")
    assert shown(recwarn) == []
    if name == "tiny_qwen":  # once is enough: the file is the same kind for all
        again = tmp_path / "again"
        again.mkdir()
        monkeypatch.chdir(again)
        assert main(["run", str(run / "recipe.yaml"), "--run.name=second"]) == 0
        # A saved recipe has absolute paths: from anywhere its runs lie beside each other, on the same data.
        assert not list(again.iterdir())
        repeated = json.loads((tmp_path / "runs" / "second" / "metrics.json").read_text())
        assert repeated["val/loss"] == pytest.approx(metrics["val/loss"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_qwen_real", *V1G])
def test_a_v1g_recipe_trains_on_its_familys_tiny_version(name, rows, tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.chdir(tmp_path)
    source = [f"--data.source.path={rows}", "--data.source.folder=shards", "--model.backbone.weights=tiny"]
    assert main(["run", name, *ON_ONE_CPU, *SMALL, *source]) == 0, capfd.readouterr().err
    assert shown(recwarn) == []
    assert json.loads((the_run(tmp_path) / "metrics.json").read_text())["train/steps"] == 2


@pytest.mark.slow
def test_the_stages_on_v1g_train_on_its_familys_tiny_version(rows, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("v1lit.cli.stages.start", lambda words: main(["run", *words]))
    source = [f"--data.source.path={rows}", "--data.source.folder=shards", "--model.backbone.weights=tiny"]
    assert main(["run", "llava_stages_v1g", *ON_ONE_CPU, *SMALL, *source]) == 0, capfd.readouterr().err
    folders = [the_run(tmp_path) / name for name in ("1-projector", "2-whole")]
    steps = [json.loads((run / "metrics.json").read_text())["train/steps"] for run in folders]
    assert steps == [1, 1]  # one epoch of a few rows each


@pytest.mark.parametrize("name", ADAPTED)
def test_a_recipe_with_adapters_trains_on_the_tiny_version(
    name, rows, tmp_path, monkeypatch, capfd, caplog, recwarn
):
    if name == "qwen_qlora_v1g":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    monkeypatch.chdir(tmp_path)
    source = [f"--data.source.path={rows}", "--data.source.folder=shards", "--model.backbone.weights=tiny"]
    step = "--trainer.accumulate_grad_batches=2"
    assert main(["run", name, *ON_ONE_CPU, *SMALL, *source, step]) == 0, capfd.readouterr().err
    assert shown(recwarn) == []
    run = the_run(tmp_path)
    assert {path.name for path in (run / "model").glob("*.safetensors")} == {
        "adapter_model.safetensors",
        "pointer_heads.safetensors",
    }
    assert json.loads((run / "metrics.json").read_text())["train/steps"] == 2
    assert "layers: language *.self_attn.q_proj x 2" in caplog.text


@pytest.mark.slow
def test_rows_without_a_validation_split_train_all_the_same(rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    only = tmp_path / "rows"
    only.mkdir()
    write_rows(only / "train-00000-of-00001.parquet", 8)
    source = [f"--data.source.path={only}", "--data.source.folder=shards"]
    assert main(["run", "tiny_qwen_real", *SMALL, *source, "--run.name=x"]) == 0
    assert (tmp_path / "runs/x/model/model.safetensors").is_file()


def test_a_run_never_overwrites_another(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/x").mkdir(parents=True)
    (tmp_path / "runs/x/metrics.json").write_text("{}")
    assert main(["run", "tiny_qwen", "--run.name=x"]) == 2
    err = capfd.readouterr().err
    assert "run.name is 'x'" in err
    assert "--run.resume" in err
    assert len(err.strip().splitlines()) <= 2


@pytest.mark.slow
def test_two_processes_end_cleanly_and_say_nothing_superfluous(tmp_path):
    two = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    small = ["--data.source.options.examples=8", "--data.source.options.val_examples=2"]
    command = [
        sys.executable,
        "-m",
        "v1lit.cli.main",
        "run",
        "tiny_qwen",
        *two,
        *SMALL,
        *small,
        "--run.name=x",
    ]
    environment = {
        **{name: value for name, value in os.environ.items() if name != RUN_FOLDER},
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "80",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs/x/metrics.json").read_text())["train/steps"] == 2
    assert (tmp_path / "runs/x/model/model.safetensors").is_file()
    said = [line for line in done.stderr.splitlines() if line.strip("- ")]
    told = (
        "drawing",
        "attention: sdpa",
        "loss: chunked",
        "MFU is the share of",
        "newer than tested: ",
        "all-reduce of",
        "waiting for rank",
    )
    assert [line for line in said if "istributed" not in line and not line.startswith(told)] == []
    assert sum(line.startswith("newer than tested: ") for line in said) <= 1
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "parameters on 2 x cpu" in done.stdout
