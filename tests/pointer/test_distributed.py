"""Two processes, of which one has no image: nobody hangs, and the step is that of one big batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from v1lit.testing.models import build, inputs, packed_batch

pytestmark = pytest.mark.dependencies

IMAGES = ((1, 2), (0,))
"""Images of the examples on either rank."""


def weight(images: tuple[int, ...]) -> int:
    """Supervised positions of a batch."""
    return int((packed_batch("qwen2_5_vl", images).labels != -100).sum())


def train_one_step(rank: int, rendezvous: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    model = DistributedDataParallel(build("qwen2_5_vl").train())
    batch = packed_batch("qwen2_5_vl", IMAGES[rank])
    normalizer = torch.tensor(sum(map(weight, IMAGES)) / 2.0)  # DDP takes the mean over ranks
    model(**inputs(batch), labels=batch.labels, normalizer=normalizer).loss.backward()
    gradients = {name: p.grad for name, p in model.module.named_parameters()}
    save_file(gradients, f"{results}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.timeout(120)
def test_ranks_with_and_without_images_make_the_step_of_one_big_batch(tmp_path: Path) -> None:
    arguments = (str(tmp_path / "rendezvous"), str(tmp_path))
    mp.start_processes(train_one_step, args=arguments, nprocs=2, start_method="fork")
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    model = build("qwen2_5_vl").train()
    normalizer = torch.tensor(float(sum(map(weight, IMAGES))))
    for images in IMAGES:
        batch = packed_batch("qwen2_5_vl", images)
        model(**inputs(batch), labels=batch.labels, normalizer=normalizer).loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    largest = max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-3, atol=1e-6 * largest)
