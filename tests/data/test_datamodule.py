"""Options of the data module, and grouping by length."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from v1lit.backbones.config import BackboneConfig
from v1lit.data.config import EncodingConfig, PackingConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.data.encoding import Encoded
from v1lit.data.loader import grouped_by_length


def made(lengths: list[int]) -> list[Encoded]:
    return [
        Encoded(str(number), torch.zeros(length), torch.zeros(length), {}, (), ())
        for number, length in enumerate(lengths)
    ]


@given(
    lengths=st.lists(st.integers(1, 50), max_size=60),
    group=st.integers(1, 8),
    window=st.integers(1, 5),
    seed=st.text(max_size=3),
)
def test_grouping_loses_and_repeats_nothing(lengths: list[int], group: int, window: int, seed: str) -> None:
    examples = made(lengths)
    first, second = (
        [one.id for one in grouped_by_length(iter(examples), group, window, seed)] for _ in range(2)
    )
    assert Counter(first) == Counter(one.id for one in examples)
    assert first == second
    moved = [abs(place - int(name)) for place, name in enumerate(first)]
    assert max(moved, default=0) < group * window


def test_grouping_saves_padding() -> None:
    torch.manual_seed(0)
    lengths = torch.randint(10, 200, (256,)).tolist()

    def padded(order: list[int]) -> int:
        return sum(16 * max(order[start : start + 16]) for start in range(0, len(order), 16))

    grouped = [len(one.input_ids) for one in grouped_by_length(iter(made(lengths)), 16, 16, "")]
    assert padded(grouped) < 1.1 * sum(lengths)
    assert padded(lengths) > 1.5 * sum(lengths)


@pytest.mark.parametrize(
    ("option", "value"),
    [("batch_size", 0), ("val_batch_size", -1), ("num_workers", -1), ("group_by_length", 0)],
)
def test_options_out_of_range_are_refused_by_name(option: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"data.{option} is {value}"):
        V1DataModule(BackboneConfig(), **{option: value})  # type: ignore[arg-type]


def test_an_example_must_fit_a_row() -> None:
    with pytest.raises(
        ValueError, match=r"max_tokens is 8192.*length is 4096.*4096 tokens longer.*length=8192"
    ):
        V1DataModule(BackboneConfig(), packing=PackingConfig(4096))
    V1DataModule(BackboneConfig(), encoding=EncodingConfig(max_tokens=4096), packing=PackingConfig(4096))
