"""Every sweep that comes with v1lit passes its dry run, on a machine that lacks its data and its devices."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import load_processor
from v1lit.cli.main import main
from v1lit.cli.recipe import compose
from v1lit.cli.recipe_cli import RecipeCLI
from v1lit.pointer.model import PointAndCopyModel
from v1lit.testing.models import noise

SWEEPS = sorted((Path(__file__).resolve().parents[2] / "recipes/sweeps").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=[path.stem for path in SWEEPS])
def test_a_shipped_sweep_passes_its_dry_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", str(path), "--dry-run", "--elsewhere"]) == 0
    said = capsys.readouterr().out
    (trials,) = re.findall(rf"^{path.stem}: (\d+) trials", said, re.MULTILINE)
    assert int(trials) >= 4
    assert [*tmp_path.iterdir()] == [], "a dry run leaves nothing"


def test_what_is_said_of_the_sweep_stands_in_its_first_line() -> None:
    for path in SWEEPS:
        about, run = path.read_text().splitlines()[:2]
        assert about.startswith("# ")
        assert run.startswith(f"# Run: v1lit sweep recipes/sweeps/{path.name}"), run


def test_every_tower_of_the_towers_sweep_makes_a_model_of_as_many_tokens() -> None:
    axes = yaml.safe_load((SWEEPS[0].parent / "towers.yaml").read_text())["axes"]
    tokens = {}
    for label, changes in axes["tower"].items():
        words = [f"--{key}={json.dumps(value)}" for key, value in changes.items()]
        backbone = RecipeCLI(compose("tiny_timm", words), parse_only=True).config["model"]["backbone"]
        model = PointAndCopyModel.build(BackboneConfig(**backbone))
        tensors, (patch_map,) = load_processor(BackboneConfig(**backbone)).images([noise((112, 112))])
        assert len(model.family.encode_images(model.backbone, **tensors)) == len(patch_map)
        tokens[label] = len(patch_map)
    assert tokens == dict.fromkeys(("siglip2", "vit", "dinov3", "convnext", "naflex"), 16)
