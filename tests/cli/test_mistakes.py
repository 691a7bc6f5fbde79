"""A mistake ends before any weight is loaded: exit code 2, one or two lines, no usage, no traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

from v1lit.cli.main import main

pytestmark = pytest.mark.dependencies

MISTAKES = {
    "no recipe": (["run"], ["RECIPE is missing"]),
    "unknown recipe": (["run", "tiny_qwenn"], ["'tiny_qwenn'", "did you mean 'tiny_qwen'", "llava_v1g"]),
    "flag first": (["run", "--debgu"], ["RECIPE comes first"]),
    "no change": (["run", "tiny_qwen", "oops"], ["'oops'", "--key=value"]),
    "no value": (["run", "tiny_qwen", "--model.init_seed"], ["model.init_seed", "no value"]),
    "unknown key": (
        "--model.pointer.gat=true",
        ["model.pointer.gat", "did you mean 'model.pointer.gate'", "tie_heads"],
    ),
    "unknown group": (
        "--modle.pointer.gate=true",
        ["'modle'", "command line", "did you mean 'model'", "trainer, model"],
    ),
    "unknown trainer key": (
        "--trainer.max_stepz=3",
        ["trainer.max_stepz", "did you mean 'trainer.max_steps'"],
    ),
    "key of another group": ("--model.lr=3", ["'model.lr'", "did you mean 'model.optimizer.lr'"]),
    "key below a value": ("--model.pointer.width.x=3", ["model.pointer.width", "an integer or null"]),
    "wrong type": ("--data.encoding.max_tokens=many", ["data.encoding.max_tokens is 'many'", "an integer"]),
    "wrong type of two": (
        "--model.pointer.width=wide",
        ["model.pointer.width is 'wide'", "an integer or null"],
    ),
    "wrong length": ("--model.optimizer.betas=[0.9]", ["model.optimizer.betas is [0.9]", "a list of 2"]),
    "wrong word": (
        "--model.pointer.loss=joined",
        ["'joined'", "did you mean 'joint'", "'joint', 'separate'"],
    ),
    "not a group": ("--model.backbone=3", ["model.backbone is 3", "mapping"]),
    "refused by a dataclass": (
        "--model.pointer.label_smoothing=2.0",
        ["error: model.pointer.label_smoothing is 2.0 (command line); it must lie in [0, 1)\n"],
    ),
    "refused in a nested one": (
        "--data.encoding.max_tokens=2",
        ["data.encoding.max_tokens is 2", "give 8 or more"],
    ),
    "unknown backbone": (
        "--model.backbone.name=qwen25_vl",
        ["'qwen25_vl'", "did you mean 'qwen2_5_vl'", "internvl"],
    ),
    "unknown part to freeze": (
        "--model.backbone.freeze=[visoin]",
        ["model.backbone.freeze", "'visoin'", "'vision'", "command line"],
    ),
    "rate of an unknown part": (
        "--model.optimizer.parts={visoin: {lr: 2e-6}}",
        ["model.optimizer.parts.visoin", "did you mean 'vision'", "pointer", "command line"],
    ),
    "unknown image option": (
        "--model.backbone.image.max_sid=9",
        ["model.backbone.image.max_sid is 9 (command line)", "did you mean 'max_side'"],
    ),
    "linked key": ("--data.backbone.name=llava", ["data.backbone", "model.backbone"]),
    "unknown source": ("--data.source.name=synthetc", ["'synthetc'", "'synthetic'", "v1g"]),
    "unknown source option": (
        "--data.source.options.lok=[x]",
        ["data.source.options.lok is ['x'] (command line)", "did you mean 'look'"],
    ),
    "options of another source": (
        "--data.source.name=shards",
        ["options.look is ['shapes']", "shapes.yaml", "--data.source.options={}"],
    ),
    "wrong value of a source option": (
        "--data.source.options.look=[shape]",
        ["data.source.options.look is ['shape'] (command line)", "did you mean 'shapes'"],
    ),
    "wrong number of a source option": (
        "--data.source.options.val_examples=0",
        ["data.source.options.val_examples is 0", "command line"],
    ),
    "unknown size of a tiny version": (
        "--model.backbone.tiny.hidden=32",
        ["error: model.backbone.tiny.hidden is 32 (command line)", "'hidden_size'"],
    ),
    "two keys that do not go together": (
        "--model.pointer.loss=separate",
        ["error: model.pointer.loss is 'separate' (command line)", "set model.pointer.z_weight to 0"],
    ),
    "refused by the data module": (
        "--data.batch_size=0",
        ["error: data.batch_size is 0 (command line); give 1 or more\n"],
    ),
    "refused by the module": (
        "--model.verify_loss=-1",
        ["error: model.verify_loss is -1 (command line); give 0 or more\n"],
    ),
    "two groups that do not go together": (
        "--data.packing.length=100",
        ["error: data.encoding.max_tokens is ", "data.packing.length is 100, so an example may be"],
    ),
    "refused in one of a list": (
        "--data.source.mixture=[{shards: x}, {shards: y, limit: 0}]",
        ["error: data.source.mixture.1.limit is 0 (command line); give 1 or more\n"],
    ),
    "one of a list without what it needs": (
        "--data.source.mixture=[{weight: 1}]",
        ["data.source.mixture.0 is {'weight': 1} (command line); it lacks 'shards'"],
    ),
    "nothing to resume from": (
        ["run", "tiny_qwen", "--run.name=x", "--run.resume=last"],
        ["run.resume is 'last' (command line); there is no complete checkpoint in runs/x", "resume=auto"],
    ),
    "unknown accelerator": (
        "--trainer.accelerator=gppu",
        ["trainer.accelerator is 'gppu'", "did you mean 'gpu'", "cpu"],
    ),
    "unknown strategy": ("--trainer.strategy=dpp", ["trainer.strategy is 'dpp'", "did you mean 'ddp'"]),
    "refused by the trainer": ("--trainer.devices=0", ["trainer.devices is 0", "command line", "1 or more"]),
    "wrong precision": ("--trainer.precision=bf61-mixed", ["trainer.precision", "did you mean 'bf16-mixed'"]),
    "unknown callback": ("--trainer.callbacks=[{class_path: NoSuch}]", ["trainer.callbacks", "NoSuch"]),
    "unknown callback option": (
        "--trainer.callbacks=[{class_path: ModelCheckpoint, init_args: {monitr: x}}]",
        ["trainer.callbacks", "'monitr'"],
    ),
    "interpolation to nowhere": (
        "--data.seed=${seed_everythin}",
        ["data.seed", "did you mean 'seed_everything'"],
    ),
    "interpolation in a circle": ("--data.seed=${data.seed}", ["data.seed", "Recursive"]),
    "interpolation to a wrong type": (
        "--data.seed=${data.encoding.supervise}",
        ["data.seed is 'assistant'", "an integer"],
    ),
    "broken interpolation": ("--data.seed=${data.", ["data.seed"]),
    "broken YAML": ("--model.optimizer.betas=[0.9", ["model.optimizer.betas", "not valid YAML"]),
    "missing part": ("--model.backbone=nowhere.yaml", ["model.backbone", "'nowhere.yaml'"]),
    "missing weights": (
        "--model.backbone.weights=/no/such",
        ["/no/such", "--model.backbone.weights", "tiny_qwen"],
    ),
    "missing checkpoint": ("--run.resume=no.ckpt", ["run.resume is 'no.ckpt'"]),
    "unknown command": (["rnu"], ["'rnu'", "did you mean 'run'"]),
    "unknown data command": (["data", "sho"], ["'sho'", "did you mean 'show'"]),
    "unknown importer": (["data", "import", "v1h", "a", "--out", "b"], ["'v1h'", "'v1g'"]),
    "unknown option": (
        ["data", "show", "x", "--backbon=llava"],
        ["'--backbon'", "did you mean '--backbone'"],
    ),
    "missing option": (["data", "synth"], ["--out"]),
    "missing source": (["data", "import", "v1g", "no.parquet", "--out", "b"], ["no.parquet"]),
    "unknown look": (["data", "synth", "--out", "b", "--look", "bar"], ["'bar'", "bars"]),
    "missing shards": (["data", "show", "nowhere"], ["nowhere"]),
}


MISTAKES["missing rows"] = (
    ["run", "tiny_qwen_real", "--data.source.path=nowhere", "--data.source.folder=shards"],
    ["nowhere"],
)
MISTAKES["null for a value that must be there"] = (
    ["run", "tiny_qwen", "--data.source.options=null"],
    ["data.source.options is null", "a mapping"],
)


@pytest.fixture
def no_weights(monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were loaded before the mistake was found")

    monkeypatch.setattr("v1lit.training.module.V1Module.configure_model", refuse)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_two_lines(mistake, no_weights, tmp_path, monkeypatch, capfd):
    given, expected = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    code = main(given if isinstance(given, list) else ["run", "tiny_qwen", given])
    out, err = capfd.readouterr()
    assert code == 2, err
    for words in expected:
        assert words in err
    assert len(err.strip().splitlines()) <= 2
    assert "usage" not in err.lower()
    assert "Traceback" not in err
    assert out == ""
    assert not list(tmp_path.iterdir()), "a run that cannot start must leave nothing behind"


def test_a_device_that_is_not_there_is_told(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning.pytorch.accelerators.cuda.CUDAAccelerator.is_available", lambda: False)
    monkeypatch.setattr("lightning.pytorch.accelerators.mps.MPSAccelerator.is_available", lambda: False)
    assert main(["run", "tiny_qwen", "--trainer.accelerator=gpu"]) == 2
    err = capfd.readouterr().err
    assert "trainer.accelerator is 'gpu' (command line)" in err
    assert "found: cpu" in err


def test_a_mistake_in_a_part_names_the_part(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text("gaet: true\n")
    (tmp_path / "r.yaml").write_text("base: tiny_qwen\nmodel: {pointer: p.yaml}\n")
    assert main(["run", "r.yaml"]) == 2
    assert "'model.pointer.gaet' (p.yaml)" in capfd.readouterr().err


def test_hub_weights_that_cannot_be_had_name_the_ways_out(no_weights, tmp_path, monkeypatch, capfd):
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.PreTrainedConfig.get_config_dict", unreachable)
    one_cpu = ["--trainer.accelerator=cpu", "--trainer.devices=1"]
    assert main(["run", "qwen_v1g", *one_cpu]) == 2
    err = capfd.readouterr().err
    for words in ("Qwen/Qwen2.5-VL-7B-Instruct", "--model.backbone.weights=/path", "tiny_qwen"):
        assert words in err
    assert len(err.strip().splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="no recipe"):
        main(["run", "nowhere", "--debug"])


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr("v1lit.cli.run.compose", "no function")
    with pytest.raises(TypeError):
        main(["run", "tiny_qwen"])


def test_ctrl_c_ends_with_one_line(monkeypatch, capfd):
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("v1lit.cli.run.compose", interrupted)
    assert main(["run", "tiny_qwen"]) == 130
    assert capfd.readouterr().err.count("\n") == 1


def test_ctrl_c_inside_the_trainer_ends_the_same_way(monkeypatch, capfd):
    def interrupted(*args: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    monkeypatch.setattr("v1lit.cli.run.compose", interrupted)
    assert main(["run", "tiny_qwen"]) == 130
    assert capfd.readouterr().err.count("\n") == 1


def test_the_exit_code_leaves_the_process(tmp_path):
    command = [sys.executable, "-m", "v1lit.cli.main", "run", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
