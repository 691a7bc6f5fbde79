"""Ranks that each read their part hold together what one process loads, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from helpers.forked import needs_fork, run_all
from helpers.stock_folders import stock_folder
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.empty import parameters_to_meta
from v1lit.backbones.weight_files import WeightsUnavailable
from v1lit.parallel import fetch
from v1lit.parallel.fill import fill, fill_from_model
from v1lit.parallel.sharding import COPIES, SHARDS, TENSOR, Meshes, shard_model
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel

pytestmark = [needs_fork, pytest.mark.timeout(240)]
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "llava", "internvl")


def on_ranks(count: int, place: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Results of so many forked processes of one gloo group."""
    return run_all(
        _in_group, [(rank, count, str(place / "meeting"), work, *arguments) for rank in range(count)]
    )


def _in_group(rank: int, count: int, meeting: str, work: Callable[..., Any], *arguments: Any) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    try:
        return work(*arguments)
    finally:
        dist.destroy_process_group()


def differing(family: str, weights: str, shape: tuple[int, int, int]) -> list[str]:
    """Names of what differs between ranks together and one process, and of what was not divided at all."""
    config = BackboneConfig(family, weights, tiny={"vision_intermediate_size": 65})
    pointer = PointerConfig(gate=True, width=33)
    torch.manual_seed(3)
    whole = PointAndCopyModel.build(config, pointer)
    model = PointAndCopyModel.build(config, pointer, empty=True)
    shard_model(model, Meshes.of(init_device_mesh("cpu", shape, mesh_dim_names=(COPIES, SHARDS, TENSOR))))
    torch.manual_seed(3)
    fill(model, config, "cpu")
    different = []
    for name, wanted in whole.named_parameters():
        held = model.get_parameter(name)
        assert isinstance(held, DTensor)
        if not torch.equal(held.full_tensor(), wanted) or held.requires_grad != wanted.requires_grad:
            different.append(name)
    different += [n for n, wanted in whole.named_buffers() if not torch.equal(model.get_buffer(n), wanted)]
    ids = torch.arange(20, 32)[None]
    losses = [one.train()(input_ids=ids, labels=ids).loss for one in (model, whole)]
    torch.testing.assert_close(*losses)  # of matrices cut in two, sums are added in another order
    return different


def all_differing(folders: list[tuple[str, str]], shape: tuple[int, int, int]) -> list[str]:
    return [name for family, weights in folders for name in differing(family, weights, shape)]


@pytest.mark.parametrize("shape", [(1, 2, 1), (2, 1, 1), (1, 1, 2)])
def test_two_ranks_hold_what_one_process_loads(shape: tuple[int, int, int], tmp_path: Path) -> None:
    folders = [(family, str(stock_folder(tmp_path / family, family))) for family in FAMILIES]
    cases = [*folders, ("qwen2_5_vl", "tiny")] if shape == (1, 2, 1) else [folders[1], ("llava", "tiny")]
    assert on_ranks(2, tmp_path, all_differing, cases, shape) == [[], []]


class Pair(nn.Module):
    """Two matrices, cut by columns and by rows, of sizes that no mesh divides evenly."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(7, size), nn.Linear(size, 7)


def cut_both_ways(size: int) -> tuple[bool, list[str]]:
    """Whether parts are what torch makes of the same weights, cut by tensor parallelism and FSDP together."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shards", "parts"))
    torch.manual_seed(5)
    whole, cut_whole, empty = Pair(size), Pair(size), Pair(size)
    cut_whole.load_state_dict(whole.state_dict())
    parameters_to_meta(empty)
    for model in (cut_whole, empty):
        plan: dict[str, Any] = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        fully_shard(parallelize_module(model, mesh["parts"], plan), mesh=mesh["shards"])
    fill_from_model(empty, whole, "cpu")
    pairs = [(name, one, empty.get_parameter(name)) for name, one in cut_whole.named_parameters()]
    kinds = {type(placement).__name__ for _, one, _ in pairs for placement in one.placements}
    return all(torch.equal(one.to_local(), other.to_local()) for _, one, other in pairs), sorted(kinds)


@pytest.mark.parametrize("size", [8, 6])
def test_parts_cut_in_two_ways_are_those_that_torch_makes(size: int, tmp_path: Path) -> None:
    results = on_ranks(4, tmp_path, cut_both_ways, size)
    assert [same for same, _ in results] == [True] * 4
    assert "_StridedShard" in results[0][1]


def fetched(place: str, problem: str | None) -> str:
    """What a rank finds once the first process of its node has fetched weights, or why there are none."""
    file, rank = Path(place, "weights"), dist.get_rank()

    def download(weights: str) -> Path:
        if problem is not None:
            raise WeightsUnavailable(problem)
        file.write_text(f"{weights} by {rank}")
        return file

    with patch.object(fetch, "local_folder", download), patch.object(fetch, "hub_errors", nullcontext):
        try:
            fetch.fetch_weights("some/weights", local_rank=rank)
        except WeightsUnavailable as error:
            return str(error)
    return file.read_text()


def test_one_process_of_a_node_fetches_and_the_others_find(tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path, fetched, str(tmp_path), None) == ["some/weights by 0"] * 2


def test_what_keeps_one_process_from_fetching_is_told_by_all(tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path, fetched, str(tmp_path), "no connection") == ["no connection"] * 2
