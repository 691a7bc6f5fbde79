"""DeepSpeed's parts of a model: read one tensor at a time, together what one process has, written once."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.forked import needs_fork
from helpers.gloo_ranks import gather, on_ranks
from helpers.stock_folders import stock_folder

from v1lit.backbones.config import BackboneConfig
from v1lit.parallel import zero3
from v1lit.parallel.fill import fill
from v1lit.parallel.tensors import whole_shape
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel

pytestmark = [needs_fork, pytest.mark.timeout(240)]
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")


def loaded(config: BackboneConfig, pointer: PointerConfig) -> tuple[PointAndCopyModel, list[int]]:
    """A model whose parameters are divided as they are read, and numbers held at each of these moments."""
    options = zero3.engine_options(limit=None, compute=None, keep_whole=0)
    model = PointAndCopyModel.build(config, pointer, empty=True)
    held = []

    def divide(parameter: torch.nn.Parameter) -> None:
        zero3.divide_parameter(parameter, options)
        held.append(sum(p.numel() for p in model.parameters() if not p.is_meta))

    torch.manual_seed(3)
    fill(model, config, "cpu", divide)
    zero3.divide_model(model, options)
    return model, held


def differing(rank: int, cases: list[tuple[str, str]]) -> list[str]:
    """Names of what differs between ranks together and one process, after loading and after a change."""
    zero3.begin_deepspeed(torch.device("cpu"), rank, rank)
    different = []
    for family, weights in cases:
        config = BackboneConfig(family, weights, tiny={"vision_intermediate_size": 65})
        pointer = PointerConfig(gate=True, width=33)
        torch.manual_seed(3)
        whole = PointAndCopyModel.build(config, pointer)
        model, held = loaded(config, pointer)
        if weights != "tiny":
            assert max(held) <= whole.get_output_embeddings().weight.numel(), "whole tensors were kept"
        assert all(p.numel() == 0 for p in model.parameters())
        assert {n: whole_shape(p) for n, p in model.named_parameters()} == {
            n: tuple(p.shape) for n, p in whole.named_parameters()
        }
        different += compare(model, {name: p.detach() for name, p in whole.named_parameters()})
        different += [n for n, own in whole.named_buffers() if not torch.equal(model.get_buffer(n), own)]
        changed = {name: p.detach() * 2 for name, p in whole.named_parameters()}
        for name, parameter in model.named_parameters():
            zero3.set_weight(parameter, partial(changed.__getitem__, name))
        different += compare(model, changed)
    return different


def compare(model: PointAndCopyModel, wanted: dict[str, torch.Tensor]) -> list[str]:
    kept = zero3.gather_weights(model.named_parameters())
    everyone = gather({name: tensor.numel() for name, tensor in kept.items()})
    assert sorted(name for names in everyone for name in names) == sorted(wanted), "not written once"
    sizes = [sum(names.values()) for names in everyone]
    assert max(sizes) - min(sizes) <= max(tensor.numel() for tensor in wanted.values())
    return [name for name, tensor in kept.items() if not torch.equal(tensor, wanted[name])]


@needs_deepspeed
def test_two_ranks_hold_what_one_process_loads(tmp_path: Path) -> None:
    families = ("qwen2_5_vl", "llava")
    cases = [(family, str(stock_folder(tmp_path / family, family))) for family in families]
    assert on_ranks(2, tmp_path, differing, [*cases, ("internvl", "tiny")]) == [[], []]


def test_whole_tensors_are_shared_out_by_their_size() -> None:
    shares = zero3.Shares(2)
    assert [shares.owner(numbers) for numbers in (5, 2, 2, 2, 5)] == [0, 1, 1, 1, 0]


def parts(rank: int, numbers: int) -> list[float]:
    parameter = torch.nn.Parameter(torch.empty(0))
    parameter.ds_tensor = torch.empty(-(-numbers // dist.get_world_size()))  # type: ignore[attr-defined]
    return zero3.own_numbers(torch.arange(1.0, numbers + 1), parameter).tolist()


def test_the_last_rank_fills_its_numbers_up(tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path, parts, 5) == [[1, 2, 3], [4, 5, 0]]
    assert on_ranks(4, tmp_path, parts, 5) == [[1, 2], [3, 4], [5, 0], [0, 0]]
