"""An export with code of its own says what v1lit says, with v1lit and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.asked import predictor
from safetensors.torch import load_file
from torch import Tensor

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import load_processor
from v1lit.backbones.registry import BUILTIN
from v1lit.cli.main import main
from v1lit.inference.autos import PointAndCopyProcessor
from v1lit.inference.predictor import Predictor
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.remote import bundle
from v1lit.pointer.remote.model import FAMILIES, STRATEGIES
from v1lit.revisit.config import RevisitConfig
from v1lit.revisit.registry import BUILTIN as ALL_STRATEGIES
from v1lit.testing.models import noise
from v1lit.training import remote_code
from v1lit.training.comparing import ExportMismatchError
from v1lit.training.exporting import ExportOptions, export_checkpoint
from v1lit.training.module import V1Module
from v1lit.training.remote_code import FILE, open_remote, refuse_remote_code, write_remote_code

pytestmark = pytest.mark.dependencies

PICTURE, OTHER = noise((112, 84)), noise((56, 168), 1)


def written(asked: Predictor, folder: Path) -> dict[str, Tensor]:
    """Write a folder with code; returns inputs of two rows, three images in all."""
    asked.model.save_pretrained(folder)
    asked.processor.save_pretrained(folder)
    write_remote_code(folder)
    questions = ["Which of the two?", "Where?"]
    batch = PointAndCopyProcessor(asked.processor)(images=[[PICTURE, OTHER], [PICTURE]], text=questions)
    return dict(batch)


def says(model: Any, inputs: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """Logits of inputs, and ids that are generated behind them."""
    with torch.no_grad():
        logits = model(**inputs).logits
    torch.manual_seed(0)
    return logits, model.generate(**inputs, **{"max_new_tokens": 8, "do_sample": False, **options})


def assert_alike(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(
        one[0], other[0], rtol=1e-4, atol=1e-4 * float(one[0].abs()[one[0] > -1e9].max())
    )
    assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_tokens_are_those_of_v1lit(family: str, tmp_path: Path) -> None:
    asked = predictor(family)
    inputs = written(asked, tmp_path)
    own, remote = says(asked.model, inputs), says(open_remote(tmp_path), inputs)
    assert_alike(own, remote)
    assert (own[1] >= asked.model.config.pointer_start).any(), "a model that points"


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gate and tied heads": ({"gate": True, "tie_heads": True}, {}, {"repetition_penalty": 1.4}),
    "narrow keys of embeddings": ({"width": 16, "key_source": "embedding", "normalize": True}, {}, {}),
    "beams": ({}, {"options": {"suppress": "trace"}}, {"num_beams": 2}),
    "runs that end": ({}, {"options": {"end": "pointer", "suppress": "region"}}, {"do_sample": True}),
    "many at once": ({}, {"name": "multi_patch", "options": {"threshold": 0.3, "max_copies": 3}}, {}),
    "nothing copied": ({}, {"name": "point_only"}, {}),
    "no pointers": ({}, {"name": "coordinates"}, {"do_sample": True}),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_every_option_is_that_of_v1lit(case: str, tmp_path: Path) -> None:
    pointer, revisit, options = OPTIONS[case]
    torch.manual_seed(0)
    backbone = BackboneConfig("qwen2_5_vl")
    model = PointAndCopyModel.build(backbone, PointerConfig(**pointer), RevisitConfig(**revisit)).eval()
    for parameter in model.pointer_head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    asked = Predictor(model, load_processor(backbone, model.config.pointer_start, model.strategy))
    inputs = written(asked, tmp_path)
    assert_alike(says(model, inputs, **options), says(open_remote(tmp_path), inputs, **options))


WITHOUT = """
import sys


class NotInstalled:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "v1lit":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NotInstalled)
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

folder, picture, outputs = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer, images = (kind.from_pretrained(folder) for kind in (AutoTokenizer, AutoImageProcessor))
pixels = images(images=[Image.open(picture)], return_tensors="pt")
tokens = int(pixels["image_grid_thw"].prod()) // images.merge_size**2
image = "<|vision_start|>" + "<|image_pad|>" * tokens + "<|vision_end|>"
turn = f"<|im_start|>user\\n{image}\\nWhere?<|im_end|>\\n<|im_start|>assistant\\n"
text = "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n" + turn
ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
with torch.no_grad():
    logits = model(ids, **pixels).logits
save_file({"logits": logits, "ids": model.generate(ids, **pixels, max_new_tokens=8)}, outputs)
assert not any(name.partition(".")[0] == "v1lit" for name in sys.modules)
"""


@pytest.mark.slow
def test_where_v1lit_is_not_installed(tmp_path: Path) -> None:
    asked = predictor()
    written(asked, tmp_path / "model")
    PICTURE.save(tmp_path / "picture.png")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_HUB_OFFLINE"] = "1"
    environment["HF_MODULES_CACHE"] = str(tmp_path / "code")  # to which transformers copies the file
    places = [str(tmp_path / name) for name in ("model", "picture.png", "outputs")]
    done = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT, *places],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "outputs")
    inputs = PointAndCopyProcessor(asked.processor)(images=PICTURE, text="Where?")
    assert_alike(says(asked.model, dict(inputs)), (found["logits"], found["ids"]))


# ------------------------------------------------------------------ the command


def checkpoint(path: Path, family: str = "qwen2_5_vl", revisit: dict[str, Any] | None = None) -> Path:
    module = V1Module(BackboneConfig(family), revisit=RevisitConfig(**(revisit or {})))
    module.configure_model()
    key = module.CHECKPOINT_HYPER_PARAMS_KEY
    torch.save({"state_dict": module.state_dict(), "loops": {}, "global_step": 1, key: module.options}, path)
    return path


def test_the_command_writes_compares_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = checkpoint(tmp_path / "a.ckpt"), tmp_path / "out"
    assert main(["export", str(path), str(out), "--remote-code", "--dtype", "bfloat16"]) == 0
    assert f"opened by {FILE}, logits of 40 tokens differ by" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert config["auto_map"]["AutoModelForImageTextToText"] == "modeling_v1lit.PointAndCopyModel"
    card = (out / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "custom_code" in card
    again = PointAndCopyModel.from_pretrained(out)
    again.save_pretrained(tmp_path / "again")
    assert "auto_map" not in json.loads((tmp_path / "again/config.json").read_text())


def test_code_that_says_something_else_is_found_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = remote_code.code()
    monkeypatch.setattr(
        remote_code, "code", lambda: text.replace("alpha=self.scale", "alpha=30 * self.scale")
    )
    path = checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ExportMismatchError, match="other logits than by v1lit"):
        export_checkpoint(path, tmp_path / "out", ExportOptions(remote_code=True))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize(
    ("family", "revisit", "options", "said"),
    [
        ("timm_lm", {}, {}, "serves no timm_lm"),
        ("qwen2_5_vl", {"name": "crop"}, {}, "serves no strategy crop"),
        ("qwen2_5_vl", {"name": "replay"}, {}, "serves no strategy replay"),
        ("qwen2_5_vl", {"control": "shuffled"}, {}, "revisit.control is shuffled"),
        ("qwen2_5_vl", {}, {"layout": "published"}, "leave out --layout=published"),
    ],
)
def test_what_it_does_not_serve_is_refused_by_name(
    family: str, revisit: dict[str, Any], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path / "a.ckpt", family, revisit)
    with pytest.raises(ValueError, match=said):
        export_checkpoint(path, tmp_path / "out", ExportOptions(remote_code=True, **options))
    assert not (tmp_path / "out").exists()


def test_all_families_and_strategies_are_served_or_refused() -> None:
    assert set(BUILTIN) - set(FAMILIES) == {"timm_lm"}
    assert set(ALL_STRATEGIES) - set(STRATEGIES) == {"crop", "replay"}
    config = predictor().model.config
    refuse_remote_code(config)


# ------------------------------------------------------------------ made of the source


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> ModuleType:
    """The module `top` of a package `house` that is made up, which is bundled as v1lit is."""
    (folder / "house").mkdir()
    (folder / "house/__init__.py").write_text("")
    for name, text in modules.items():
        (folder / f"house/{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(bundle, "PACKAGE", "house")
    for name in [name for name in sys.modules if name.partition(".")[0] == "house"]:
        del sys.modules[name]
    bundle.read.cache_clear()
    from importlib import import_module

    return import_module("house.top")


def test_what_is_used_and_nothing_else_is_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = package(
        tmp_path,
        monkeypatch,
        top="from house.below import twice\n\ndef four() -> int:\n    return twice(2)\n",
        below=(
            "import math\nimport json\n\nFACTOR = 2\n'''Of all.'''\n\n# Why.\ndef twice(x: int) -> int:\n"
            "    return int(math.prod([FACTOR, x]))\n\ndef unused() -> str:\n    return json.dumps(1)\n"
        ),
    )
    text = bundle.bundle(top, "Head.")
    names: dict[str, Any] = {}
    exec(text, names)
    assert names["four"]() == 4
    assert "# Why.\ndef twice" in text
    assert "'''Of all.'''" in text
    assert "unused" not in text
    assert "json" not in text


@pytest.mark.parametrize(
    ("top", "said"),
    [
        ("from house.a import f\nfrom house.b import g\nx = (f, g)\n", "another thing"),
        ("from house.a import f as h\nx = h\n", "renames f"),
        ("def x():\n    from house.a import f\n    return f\n", "inside of a definition"),
    ],
)
def test_names_that_mean_several_things_make_no_file(
    top: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = "def _own():\n    return {0}\n\ndef {1}():\n    return _own()\n"
    made = package(tmp_path, monkeypatch, top=top, a=one.format(1, "f"), b=one.format(2, "g"))
    with pytest.raises(bundle.BundleError, match=said):
        bundle.bundle(made, "Head.")
