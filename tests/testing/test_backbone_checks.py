"""Every check of every family passes, a family of a package outside passes, and broken ones fail by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from v1lit.backbones import list_backbones, register_backbone, registry
from v1lit.backbones.llava import Llava
from v1lit.backbones.segments import Segments
from v1lit.grounding.patch_map import PatchMap
from v1lit.testing import BACKBONE_CHECKS, BackboneError, assert_parity, check_backbone
from v1lit.testing.models import processor

pytestmark = pytest.mark.dependencies


@pytest.mark.parametrize("check", BACKBONE_CHECKS)
@pytest.mark.parametrize("family", list_backbones())
def test_every_family_does_what_the_readme_claims(family: str, check: str) -> None:
    (done,) = check_backbone(family, check)
    assert (done.family, done.name, done.passed) == (family, check, True)
    assert done.compared


# ---------------------------------------------------------------- a family of somebody else

OUTSIDE = '''
from v1lit.backbones.llava import Llava


class Padded(Llava):
    """LLaVA-1.5 on the whole image, padded to a square; its rows are padded as well."""

    image_defaults = {**Llava.image_defaults, "do_pad": True}
    packs = False
'''
TEST = """
import pytest
from v1lit.testing import BACKBONE_CHECKS, check_backbone


@pytest.mark.parametrize("check", BACKBONE_CHECKS)
def test_padded(check):
    check_backbone("llava_padded", check)
"""


@pytest.mark.slow
def test_a_package_outside_is_found_and_its_family_passes(tmp_path: Path) -> None:
    (tmp_path / "padded_llava").mkdir()
    (tmp_path / "padded_llava/__init__.py").write_text(OUTSIDE)
    (tmp_path / "padded_llava-1.0.dist-info").mkdir()
    (tmp_path / "padded_llava-1.0.dist-info/METADATA").write_text("Name: padded_llava\nVersion: 1.0\n")
    (tmp_path / "padded_llava-1.0.dist-info/entry_points.txt").write_text(
        "[v1lit.backbones]\nllava_padded = padded_llava:Padded\n"
    )
    (tmp_path / "test_padded.py").write_text(TEST)
    code = (
        "import sys; sys.path.insert(0, '.'); import pytest; sys.exit(pytest.main(['-q', 'test_padded.py']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout
    assert f"{len(BACKBONE_CHECKS)} passed" in done.stdout


# ---------------------------------------------------------------- broken ones


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    processor.cache_clear()


class MirroredMap(Llava):
    """Its patch map counts columns from the right."""

    def grid(self, *args: Any, **options: Any) -> PatchMap:
        right = super().grid(*args, **options)
        order = torch.arange(len(right)).unflatten(0, (6, 6)).flip(1).flatten().numpy()
        return PatchMap(right.image_size, right.boxes[order], right.token_views[order], right.views)


class LeakingRows(Llava):
    """Its decoder takes a packed row for one example."""

    def prepare(self, model: Any) -> Any:
        def join(module: Any, args: Any, options: dict[str, Any]) -> Any:
            segments = options.get("segments")
            if segments is not None:
                options["segments"] = Segments((segments.tokens,), segments.attention)
            return args, options

        for layer in model.model.language_model.layers:
            layer.register_forward_pre_hook(join, with_kwargs=True)
        return super().prepare(model)


class LostOption(Llava):
    """It says that images are padded, and does not tell the processor."""

    image_defaults: ClassVar[Mapping[str, Any]] = {**Llava.image_defaults, "do_pad": True}

    def processor_arguments(self, options: Any) -> dict[str, Any]:
        arguments = super().processor_arguments(options)
        return {key: value for key, value in arguments.items() if key != "do_pad"}


class ForgottenWork(Llava):
    """It takes its tower for one layer deeper than it is."""

    def vision_work(self, config: Any, image_inputs: Any) -> Any:
        work = super().vision_work(config, image_inputs)
        return work._replace(attention=work.attention * 3 // 2)


@pytest.mark.parametrize(
    ("cls", "failed", "reason"),
    [
        (
            MirroredMap,
            ["patch_map"],
            r"the rectangle \(.*\) changes .* but the patch map names",
        ),
        (LeakingRows, ["packing"], "packed differs from alone by .* leaks from other examples, allowed 0"),
        (
            LostOption,
            ["image_options", "patch_map"],
            "is made of .*'do_pad': True.* has .*'do_pad': False",
        ),
        (ForgottenWork, ["work"], "vision_work makes .* operations of the batch's images, torch counts"),
    ],
)
def test_a_broken_family_fails_in_the_checks_that_are_for_it(
    cls: type[Llava], failed: list[str], reason: str
) -> None:
    register_backbone("broken")(cls)
    with pytest.raises(BackboneError, match=reason) as error:
        check_backbone("broken")
    assert [done.name for done in error.value.checks if not done.passed] == failed
    assert [done.name for done in error.value.checks] == [*BACKBONE_CHECKS]
    first, second, *_ = str(error.value).splitlines()
    assert first == f"{len(failed)} of {len(BACKBONE_CHECKS)} checks of broken failed"
    assert second.startswith("  ok     parts: 64 parameters of 3 parts")
    assert f"\n  FAILED {failed[0]}: " in str(error.value)


def test_a_check_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="check of a backbone 'packs'; did you mean 'packing'"):
        check_backbone("llava", "packs")


def test_parity_sees_other_numbers_other_shapes_and_nan() -> None:
    numbers = torch.tensor([1.0, -4.0])
    assert assert_parity("losses", numbers + 1e-6, numbers) < 1e-6
    for other, reason in (
        (numbers + 1e-2, "losses differ by 2.5e-03, allowed 1e-04"),
        (numbers[:1], r"losses: \(1,\) and \(2,\) numbers"),
        (numbers * float("nan"), "losses differ by nan"),
    ):
        with pytest.raises(AssertionError, match=reason):
            assert_parity("losses", other, numbers)
