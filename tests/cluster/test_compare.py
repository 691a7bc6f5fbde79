"""Everything in which ranks differ is told together, with ranks, hosts and values."""

from __future__ import annotations

from dataclasses import replace

from v1lit.cluster.compare import MAX_SKEW, compare
from v1lit.cluster.facts import Facts

SAME = Facts(
    {"torch": "2.14.1"}, {"run.name": '"x"', "seed": "0"}, {"the content of /data": "ab12"}, "H100", 10**12
)


def names(ranks: list[int]) -> str:
    return "+".join(f"rank {rank}" for rank in ranks)


def test_ranks_that_agree_have_nothing_said_of_them() -> None:
    found = compare([SAME, SAME, SAME], names, 10**9)
    assert (found.errors, found.warnings) == ([], [])


def test_all_differences_are_told_with_who_has_which_value() -> None:
    other = replace(
        SAME,
        versions={"torch": "2.13.0"},
        recipe={"run.name": '"x"', "seed": "1", "more": "true"},
        shards={"the content of /data": "cd34"},
        unreachable=["rank 0 (a) at 10.0.0.1 (No route to host)"],
    )
    found = compare([SAME, other, SAME], names, None)
    assert found.errors == [
        "torch is 2.14.1 on rank 0+rank 2, but 2.13.0 on rank 1",
        "seed is 0 on rank 0+rank 2, but 1 on rank 1",
        "more is missing on rank 0+rank 2, but true on rank 1",
        "the content of /data is ab12 on rank 0+rank 2, but cd34 on rank 1",
        "rank 1 cannot reach rank 0 (a) at 10.0.0.1 (No route to host)",
    ]
    assert found.warnings == []


def test_other_devices_and_clocks_are_warned_of() -> None:
    found = compare([SAME, replace(SAME, device="A100", skew=-MAX_SKEW - 1)], names, None)
    assert found.errors == []
    device, clock = found.warnings
    assert device == "device is H100 on rank 0, but A100 on rank 1"
    assert clock.startswith("the clock of rank 1 is 3.0 s behind rank 0's")
    assert compare([SAME, replace(SAME, skew=MAX_SKEW)], names, None).warnings == []


def test_free_disk_is_compared_with_checkpoints_of_12_bytes_a_parameter() -> None:
    model = 10**9
    enough, two, none = (replace(SAME, free=count * 12 * model) for count in (3, 2, 0))
    assert compare([enough, enough], names, model).warnings == []
    found = compare([two, enough], names, model)
    assert found.errors == []
    assert "rank 0 has 24.0 GB free for checkpoints; one takes up to 12.0 GB" in found.warnings[0]
    found = compare([none, none], names, model)
    assert len(found.errors) == len(found.warnings) == 1
    assert found.errors[0].startswith("rank 0 has 0.0 GB free")
    assert compare([none, none], names, None).errors == []
