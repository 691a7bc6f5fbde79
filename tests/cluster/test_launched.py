"""What a launcher has started is compared with what the recipe asks for, before Lightning finds out."""

from __future__ import annotations

import pytest

from v1lit.cluster.launched import Launched, launched, place_of_process, refuse_other_size
from v1lit.errors import OptionError

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1",
    "MASTER_ADDR": "node-1", "MASTER_PORT": "1234",
}  # fmt: skip
SLURM = {
    "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2",
    "SLURM_LOCALID": "1", "SLURM_NODELIST": "gpu[3-4]", "SLURM_JOB_ID": "70042", "SLURM_NODEID": "1",
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {**TORCHRUN, **SLURM, "SLURM_JOB_NAME": ""}:
        monkeypatch.delenv(name, raising=False)


def told(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], **more: str) -> None:
    for name, value in {**variables, **more}.items():
        monkeypatch.setenv(name, value)


def test_a_process_by_itself_is_told_nothing_and_refused_nothing() -> None:
    assert launched() is None
    refuse_other_size(8, 4)


@pytest.mark.parametrize(("by", "variables"), [("torchrun", TORCHRUN), ("SLURM", SLURM)])
def test_launchers_say_which_rank_of_how_many_this_is(
    by: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, variables)
    assert launched() == Launched(by, 3, 4, 1, 2)
    refuse_other_size(2, 2)
    place = place_of_process(Launched(by, 3, 4, 1, 2))
    assert (place.rank, place.size) == (3, 4)
    assert (place.address, place.port) == (("node-1", 1234) if by == "torchrun" else ("gpu3", 15042))


@pytest.mark.parametrize(("devices", "nodes"), [(4, 2), (1, 1), (4, 1)])
def test_a_recipe_for_another_number_is_refused_with_both_remedies(
    devices: int, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, TORCHRUN)
    with pytest.raises(OptionError) as caught:
        refuse_other_size(devices, nodes)
    text = str(caught.value)
    assert text.startswith(f"trainer.devices is {devices}; with trainer.num_nodes={nodes} that makes")
    assert "torchrun has started 4, 2 on each node" in text
    assert "--trainer.devices=2 --trainer.num_nodes=2" in text
    assert f"--nproc-per-node={devices} --nnodes={nodes}" in text


def test_tasks_of_slurm_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, SLURM)
    with pytest.raises(OptionError, match="SLURM has started 4, 2 on each node"):
        refuse_other_size(8, 2)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    refuse_other_size(8, 2)
