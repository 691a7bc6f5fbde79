"""Exports from checkpoints: the same folder as from the model in memory, without ever holding all of it."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import v1lit
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import load_processor
from v1lit.backbones.registry import BUILTIN
from v1lit.cli.main import main
from v1lit.inference.predictor import Predictor
from v1lit.parallel import weight_stream
from v1lit.parallel.folder_writer import FolderWriter
from v1lit.parallel.weight_stream import shared_names
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.training import exporting
from v1lit.training.exporting import ExportMismatchError, ExportOptions, export_checkpoint
from v1lit.training.module import V1Module
from v1lit.training.results import export
from v1lit.training.saved_state import read_checkpoint, split

pytestmark = pytest.mark.dependencies


def module_of(family: str = "qwen2_5_vl", tied: bool = False, **pointer: Any) -> V1Module:
    """A tiny module with weights."""
    tiny = {"tie_word_embeddings": tied}
    module = V1Module(BackboneConfig(family, tiny=tiny), PointerConfig(**pointer))
    module.configure_model()
    return module


def save(module: V1Module, path: Path, folder: bool) -> Path:
    """What a checkpoint of a run has that an export looks at."""
    content = {
        "state_dict": module.state_dict(),
        "loops": {},
        "global_step": 7,
        LightningModule.CHECKPOINT_HYPER_PARAMS_KEY: module.options,
    }
    if folder:
        writer = FolderWriter(0, lambda own: [own])
        writer.begin(path, *split(content, [], shared_names(module)))
        writer.settle()
    else:
        torch.save(content, path)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".json"}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", sorted(BUILTIN))
def test_file_and_folder_become_the_folder_that_the_model_itself_would(
    family: str, tied: bool, tmp_path: Path
) -> None:
    module = module_of(family, tied)
    start = module.model.config.pointer_start
    processor = load_processor(module.backbone_config, pointer_start=start)
    export(Predictor(module.model, processor), tmp_path / "expected")
    expected = load_file(tmp_path / "expected/model.safetensors")
    for kind in ("file", "folder"):
        made = export_checkpoint(save(module, tmp_path / f"{kind}.ckpt", kind == "folder"), tmp_path / kind)
        assert made.check.startswith("logits of")
        assert "differ by 0 at most" in made.check
        assert files(tmp_path / kind) == files(tmp_path / "expected")
        found = load_file(tmp_path / kind / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        with safe_open(tmp_path / kind / "model.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt"}


class Watched(Mapping[str, Tensor]):
    """Weights that count how many bytes of them are held at once."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights, self.held, self.most, self.read = weights, 0, 0, 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.weights[name].clone()
        size = tensor.numel() * tensor.element_size()
        self.held, self.read = self.held + size, self.read + 1
        self.most = max(self.most, self.held)
        weakref.finalize(tensor, self._let_go, size)
        return tensor

    def _let_go(self, size: int) -> None:
        self.held -= size

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


@pytest.mark.parametrize("layout", ["v1lit", "published"])
def test_never_more_than_a_file_and_a_tensor_are_held(
    layout: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(module_of(), tmp_path / "a.ckpt", folder=True)
    watched = Watched(dict(read_checkpoint(path)["state_dict"]))
    monkeypatch.setattr(exporting, "weights_of", lambda content: watched)
    monkeypatch.setattr(exporting, "like", lambda weights, name: weights.weights[name].to("meta"))
    limit = 300_000
    options = ExportOptions(layout=layout, shard_bytes=limit, check="tensors")
    made = export_checkpoint(path, tmp_path / "out", options)
    largest = max(tensor.numel() * 4 for tensor in watched.weights.values())
    assert made.files > 3
    assert watched.read >= 2 * made.tensors
    assert limit / 2 < watched.most <= limit + largest
    assert watched.held == 0


@pytest.mark.parametrize("layout", ["v1lit", "published"])
def test_several_files_with_an_index_are_opened_as_one_model(layout: Any, tmp_path: Path) -> None:
    module = module_of(tie_heads=True)
    path = save(module, tmp_path / "a.ckpt", folder=True)
    out = tmp_path / "out"
    made = export_checkpoint(path, out, ExportOptions(layout=layout, shard_bytes=200_000, check="logits"))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == made.bytes
    assert len(set(index["weight_map"].values())) == made.files > 1
    published = layout == "published"
    opened = PointAndCopyModel.from_published(out) if published else v1lit.load(out).model
    expected = module.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.state_dict().items())
    assert opened.config.pointer_options.tie_heads


def test_the_published_layout_is_that_of_save_published(tmp_path: Path) -> None:
    from v1lit.pointer.published import save_published

    module = module_of(gate=True)
    processor = load_processor(module.backbone_config, module.model.config.pointer_start)
    save_published(module.model, tmp_path / "expected", processor)
    path = save(module, tmp_path / "a.ckpt", folder=True)
    export_checkpoint(path, tmp_path / "out", ExportOptions(layout="published"))
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "expected"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert files(tmp_path / "out") == files(tmp_path / "expected")


def test_another_type_is_that_of_parameters_and_config(tmp_path: Path) -> None:
    path = save(module_of(), tmp_path / "a.ckpt", folder=False)
    export_checkpoint(path, tmp_path / "out", ExportOptions(dtype="bfloat16"))
    opened = v1lit.load(tmp_path / "out").model
    assert {parameter.dtype for parameter in opened.parameters()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


def test_the_published_layout_in_half_precision_keeps_the_frequencies_of_positions(tmp_path: Path) -> None:
    path = save(module_of(), tmp_path / "a.ckpt", folder=True)
    made = export_checkpoint(path, tmp_path / "out", ExportOptions(layout="published", dtype="bfloat16"))
    assert "differ by 0 at most" in made.check
    opened = PointAndCopyModel.from_published(tmp_path / "out")
    assert {parameter.dtype for parameter in opened.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in opened.buffers()} == {torch.float32}


# ------------------------------------------------------------------ checked


@pytest.mark.parametrize("check", ["auto", "tensors", "logits"])
def test_a_weight_that_is_written_wrongly_is_found_and_nothing_is_left(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(tensors: dict[str, Tensor], path: Path, **options: Any) -> None:
        name = next(name for name in tensors if name.endswith("mlp.down_proj.weight"))
        tensors[name] = tensors[name] * 1.5
        real(tensors, path, **options)

    real = weight_stream.save_file
    monkeypatch.setattr(weight_stream, "save_file", spoil)
    path = save(module_of(), tmp_path / "a.ckpt", folder=True)
    with pytest.raises(ExportMismatchError, match=r"checkpoint|a\.ckpt"):
        export_checkpoint(path, tmp_path / "out", ExportOptions(check=check))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


def test_where_the_model_does_not_fit_into_memory_tensors_are_compared_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "available_memory", lambda: 10**6)
    monkeypatch.setattr(exporting, "_compare_logits", lambda *arguments: pytest.fail("not to be held"))
    path = save(module_of(), tmp_path / "a.ckpt", folder=True)
    made = export_checkpoint(path, tmp_path / "out")
    assert "tensors are equal" in made.check
    assert "logits need 0.0 GB of memory, and 0.0 GB are free" in made.check


def test_memory_that_is_free_is_known_here() -> None:
    free = exporting.available_memory()
    assert free is None or 10**6 < free < 10**15


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize("folder", [False, True])
def test_weights_that_do_not_fit_are_refused_by_name(folder: bool, tmp_path: Path) -> None:
    module = module_of()
    real = module.state_dict
    for change, said in (
        (lambda state: state.pop("model.pointer_head.key.weight"), "missing: pointer_head.key.weight"),
        (lambda state: state.update({"model.more": torch.ones(2)}), "unexpected: more"),
        (
            lambda state: state.update({"model.pointer_head.key.weight": torch.ones(2)}),
            "of another shape: poi",
        ),
    ):
        state = dict(real())
        change(state)
        module.state_dict = lambda *_, state=state: state  # type: ignore[assignment]
        path = save(module, tmp_path / "a.ckpt", folder)
        with pytest.raises(ValueError, match=said):
            export_checkpoint(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_family_in_the_published_layout_and_a_folder_that_is_there_are_refused(
    tmp_path: Path,
) -> None:
    path = save(module_of("llava"), tmp_path / "a.ckpt", folder=True)
    with pytest.raises(ValueError, match=r"Qwen2\.5-VL only"):
        export_checkpoint(path, tmp_path / "out", ExportOptions(layout="published"))
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="name a new folder"):
        export_checkpoint(path, tmp_path / "out")


# ------------------------------------------------------------------ command line


def test_the_command_exports_and_says_what_was_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(module_of(), tmp_path / "a.ckpt", folder=True)
    out = tmp_path / "deep/out"
    assert main(["export", str(path), str(out), "--dtype", "bfloat16", "--shard-gb", "0.0003"]) == 0
    said = capsys.readouterr().out
    assert f"61 weights, 0.00066 GB in 3 files: {out}" in said
    assert "logits of 40 tokens differ by" in said
    assert v1lit.load(out).model.dtype == torch.bfloat16


def test_of_a_runs_folder_the_newest_checkpoint_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(module_of(), tmp_path / "checkpoints/last.ckpt", folder=True)
    assert main(["export", str(tmp_path), str(tmp_path / "out"), "--check", "none"]) == 0
    said = capsys.readouterr().out
    assert f"from {path}" in said
    assert "nothing was compared" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.ckpt", "out"], "there is no checkpoint missing.ckpt"),
        ([".", "out"], "complete.json"),
        ([".", "out", "--shard-gb", "0"], "must be more than 0"),
        ([".", "out", "--layout", "gguf"], "invalid choice"),
        ([".", "out", "--no-such"], "does not take '--no-such'"),
    ],
)
def test_mistakes_end_in_two_lines(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.strip().count("\n") <= 1
