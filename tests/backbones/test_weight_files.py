"""Weight files are judged by their headers: whole, of one set, and never trusted or unpickled."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from v1lit.backbones.weight_files import (
    INDEX,
    SINGLE,
    TensorInfo,
    WeightsUnavailable,
    read_header,
    read_headers,
    read_json,
    weight_files,
)

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4242\n"


def shards(folder: Path) -> None:
    save_file({"a": torch.zeros(2, 3)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(4, dtype=torch.bfloat16)}, folder / "model-00002-of-00002.safetensors")
    owners = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": owners}))


def header(content: object) -> bytes:
    raw = json.dumps(content).encode()
    return struct.pack("<Q", len(raw)) + raw


def test_headers_of_all_shards_are_read(tmp_path: Path) -> None:
    shards(tmp_path)
    assert read_headers(tmp_path) == {"a": TensorInfo("F32", (2, 3)), "b": TensorInfo("BF16", (4,))}


def test_a_header_that_names_a_type_of_tomorrow_is_read(tmp_path: Path) -> None:
    path = tmp_path / SINGLE
    path.write_bytes(header({"a": {"dtype": "F6_NEW", "shape": [4], "data_offsets": [0, 3]}}) + b"abc")
    assert read_header(path) == {"a": TensorInfo("F6_NEW", (4,))}


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
WRONG = {
    "git-lfs": (LFS.encode(), r"git-lfs pointer.*\n.*git lfs pull"),
    "empty": (b"", "does not begin as one"),
    "a web page": (b"<!doctype html>" * 20, "does not begin as one"),
    "a header of an exabyte": (struct.pack("<Q", 2**60) + b"{}", "does not begin as one"),
    "cut in the header": (header({"a": F32})[:20], r"is cut off: it has 20 bytes of at least \d+\n"),
    "cut in the weights": (
        header({"a": F32}) + b"123",
        r"is cut off: it has \d+ bytes of \d+\n.*hf download",
    ),
    "more than its tensors": (header({"a": F32}) + b"12345", "1 bytes follow its last tensor"),
    "no JSON": (struct.pack("<Q", 3) + b"{{{", "header cannot be read"),
    "nested without end": (struct.pack("<Q", 10**5) + b"[" * 10**5, "header cannot be read"),
    "a list": (header([1]), "header cannot be read"),
    "no offsets": (header({"a": {"dtype": "F32", "shape": [1]}}) + b"1234", "header cannot be read"),
    "a negative size": (header({"a": {**F32, "shape": [-1, -1]}}) + b"1234", "header cannot be read"),
    "a size that does not fit": (header({"a": {**F32, "shape": [10**9]}}) + b"1234", "header cannot be read"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_damaged_file_is_told_from_its_first_bytes(kind: str, tmp_path: Path) -> None:
    content, message = WRONG[kind]
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(WeightsUnavailable, match=message) as error:
        read_headers(tmp_path)
    assert str(error.value).count("\n") == 1
    assert SINGLE in str(error.value)


def drop_shard(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()


def drop_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def add_single(folder: Path) -> None:
    save_file({"a": torch.zeros(2, 3)}, folder / SINGLE)


def point_outside(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../../model.safetensors"}}))


def claim_more(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["c"] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


def hold_twice(folder: Path) -> None:
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, folder / "model-00002-of-00002.safetensors")


def empty_index(folder: Path) -> None:
    (folder / INDEX).write_text("{}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_shard, r"lacks 1 of the 2 shards that .* names: model-00002"),
        (drop_index, r"has shards \(model-00001.*but not model\.safetensors\.index\.json"),
        (add_single, r"holds two sets of weights: model\.safetensors, and 2 shards"),
        (point_outside, r"names '\.\./\.\./model\.safetensors', which is no file of this folder"),
        (claim_more, r"model-00001-of-00002\.safetensors does not hold c"),
        (hold_twice, "tensor a is in both model-00001.* and model-00002"),
        (empty_index, "has no weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_folder_is_refused(
    change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    shards(tmp_path)
    change(tmp_path)
    with pytest.raises(WeightsUnavailable, match=message):
        read_headers(tmp_path)


def test_an_index_of_the_single_file_is_no_second_set(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3)}, tmp_path / SINGLE)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": SINGLE}}))
    assert set(read_headers(tmp_path)) == {"a"}


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", "has pickled weights only.*\n.*M.from_pretrained"),
        ("pytorch_model-00001-of-00002.bin", "has pickled weights only"),
        ("consolidated.00.pth", r"has weights as consolidated\.00\.pth only"),
        ("last.ckpt", r"has weights as last\.ckpt only"),
        ("model-q4.gguf", r"has weights as model-q4\.gguf only"),
        ("model.fp16.safetensors", r"has weights as model\.fp16\.safetensors only"),
        ("training_args.bin", "has a config, but no weights"),
    ],
)
def test_what_lies_there_instead_is_named_and_not_opened(name: str, message: str, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    (tmp_path / name).write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(WeightsUnavailable, match=message) as error:
        weight_files(tmp_path)
    assert SINGLE in str(error.value)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "git-lfs pointer"),
        ("{", "not valid JSON"),
        ("[" * 10**5, "not valid JSON"),
        ("[]", "must hold a mapping, not list"),
        ("\ud800", "not valid JSON"),
    ],
)
def test_json_files_are_mappings(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(WeightsUnavailable, match=message):
        read_json(path)


def test_a_json_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: takes no space
    with pytest.raises(WeightsUnavailable, match="has 1099511627776 bytes"):
        read_json(path)
