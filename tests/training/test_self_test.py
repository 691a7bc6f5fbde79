"""Every check of the self-test passes on this installation, and notices what it is for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Cache

from v1lit.backbones.registry import BUILTIN
from v1lit.data.synthetic import synthesize
from v1lit.inference.loading import choose_device
from v1lit.pointer import model as pointer_model
from v1lit.pointer.joint_loss import LossMismatchError
from v1lit.training import self_test as module
from v1lit.training.captured_output import CapturedOutput
from v1lit.training.self_test import SCENES, Family, SelfTestError, self_test

pytestmark = [pytest.mark.dependencies, pytest.mark.dependencies]
CPU = torch.device("cpu")
CHECKS = ["train", "save", "cache", "beams", "packing", "loss"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("self-test") / "scenes"
    synthesize(folder / "train", examples=SCENES, image_size=(112, 112), workers=1, progress=False)
    return folder


@pytest.fixture
def llava(scenes: Path) -> Iterator[Family]:
    return Family("llava", scenes, CPU)


@pytest.mark.slow
@pytest.mark.parametrize("family", BUILTIN)
def test_a_sound_installation_passes_and_keeps_no_file(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    captured, threads = CapturedOutput(), torch.get_num_threads()
    checks = list(self_test(CPU, captured, [family]))
    assert torch.get_num_threads() == threads
    assert [(one.family, one.name, one.error) for one in checks] == [(family, name, None) for name in CHECKS]
    assert all(one.difference is not None and one.difference < 1e-5 for one in checks[1:])
    assert not captured.warnings
    assert not list(tmp_path.iterdir())


def test_a_failed_check_keeps_none_of_the_others_from_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Family) -> Any:
        raise TypeError("no such argument\nand more about it")

    monkeypatch.setattr(Family, "processor", property(broken))
    checks = list(self_test(CPU, CapturedOutput(), ["llava", "qwen2_vl"]))
    assert len(checks) == 2 * len(CHECKS)
    assert not any(one.passed for one in checks)
    assert {one.compared for one in checks} == {"TypeError: no such argument"}


# ---------------------------------------------------------------- what each is for


def test_steps_that_change_nothing_are_noticed(llava: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: closure and closure() and None)
    with pytest.raises(SelfTestError, match="loss of 4 examples"):
        llava.train()


def test_a_model_that_opens_with_other_weights_is_noticed(
    llava: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*args: Any, **kwargs: Any) -> Any:
        opened = module_load(*args, **kwargs)
        opened.model.pointer_head.query.weight.data.zero_()
        return opened

    module_load = module.load
    monkeypatch.setattr(module, "load", damaged)
    with pytest.raises(SelfTestError, match="losses before saving and after opening differ by"):
        llava.save()


def test_a_processor_that_opens_as_another_is_noticed(llava: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def flipped(example: Any, processor: Any, config: Any) -> Any:
        encoded = module_encode(example, processor, config)
        if processor is llava.processor:
            return encoded
        return replace(encoded, image_inputs={n: t.flip(-1) for n, t in encoded.image_inputs.items()})

    module_encode = module.encode
    monkeypatch.setattr(module, "encode", flipped)
    with pytest.raises(SelfTestError, match="losses before saving and after opening differ by"):
        llava.save()


@pytest.mark.parametrize("check", ["cache", "beams"])
def test_a_decoder_that_does_not_know_its_cache_is_noticed(
    check: str, llava: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It swallows the cache under a name that it does not know, and sees no past."""
    decoder = llava.model.backbone.get_decoder()
    plain = decoder.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = plain(*args, **{**kwargs, pointer_model.CACHE: None})
        out[pointer_model.CACHE] = kwargs[pointer_model.CACHE]
        return out

    monkeypatch.setattr(decoder, "forward", forward)
    with pytest.raises(SelfTestError, match="with and without cache differ by"):
        getattr(llava, check)()


def test_beams_that_are_not_reordered_are_noticed(llava: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cache, "reorder_cache", lambda self, beams: None)
    with pytest.raises(SelfTestError, match="scores of beams with and without cache differ by"):
        llava.beams()


def test_packed_examples_that_see_each_other_are_noticed(
    llava: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the decoder knew nothing of segments: one long causal row."""
    places = "v1lit.pointer.model.packed_decoder_arguments", "v1lit.pointer.inputs.packed_positions"
    monkeypatch.setattr(places[0], lambda *_: {"attention_mask": None, "use_cache": False})
    monkeypatch.setattr(places[1], lambda family, inner, ids, *_, **__: torch.arange(ids.shape[1])[None])
    with pytest.raises(SelfTestError, match=r"packed differs from alone by .* leaks from other examples"):
        llava.packing()


def test_a_loss_that_is_off_is_noticed(llava: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    from v1lit.pointer.joint_loss import verify

    def off(*args: Any, **constants: Any) -> Any:
        terms = plain(*args, **constants)
        return terms if args[-1].implementation == "reference" else replace(terms, loss=terms.loss * 1.01)

    plain = verify.pointer_cross_entropy
    monkeypatch.setattr(verify, "pointer_cross_entropy", off)
    with pytest.raises(LossMismatchError, match="relative error"):
        llava.loss()
    assert llava.model.verify_loss is False


# ---------------------------------------------------------------- devices


def test_the_fastest_device_is_taken_and_a_missing_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "mps"
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="no cuda device on this machine; found: mps, cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"
