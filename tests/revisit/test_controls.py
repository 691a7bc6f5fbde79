"""What a control copies in place of what was pointed at: from the right sequence, with the same lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from v1lit.revisit.controls import MAPPED, control, patches_instead, sequence_seeds

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=5)


@given(COUNTS, st.integers(0, 2**31), st.sampled_from(MAPPED))
def test_every_patch_has_another_in_its_place_or_itself_where_there_is_one_only(
    counts: list[int], seed: int, name: str
) -> None:
    instead = patches_instead(name, counts, [seed + index for index in range(len(counts))])
    assert len(instead) == sum(counts)
    owners = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    for sequence in range(len(counts)):
        own = instead[owners == sequence]
        if name == "other_image":
            others = [index for index in range(len(counts)) if index != sequence and counts[index]]
            expected = {sequence} if not others else set(others)
            assert {int(owners[token]) for token in own} <= expected
        else:
            assert sorted(own.tolist()) == (owners == sequence).nonzero()[:, 0].tolist()


@given(st.integers(4, 60), st.integers(0, 2**31))
def test_a_random_region_keeps_its_shape_and_is_at_another_place(count: int, seed: int) -> None:
    shifts = {
        (int(token) - index) % count
        for index, token in enumerate(patches_instead("random_region", [count], [seed]))
    }
    (shift,) = shifts
    assert count // 4 <= shift <= 3 * count // 4
    assert shift > 0


def test_a_sequence_draws_the_same_wherever_it_stands() -> None:
    alone = patches_instead("shuffled", [12], [7])
    beside = patches_instead("shuffled", [5, 12, 3], [1, 7, 2])
    assert torch.equal(alone, beside[5:17] - 5)
    assert not torch.equal(alone, patches_instead("shuffled", [12], [8]))


def test_noise_has_the_norm_of_what_it_stands_for_and_blank_is_blank() -> None:
    copies = torch.randn(9, 16) * torch.arange(1, 10)[:, None]
    noise = control("noise_copy", copies, [4, 5], [1, 2], lambda: torch.zeros(16), 16)
    torch.testing.assert_close(noise.norm(dim=1), copies.norm(dim=1))
    assert float(torch.cosine_similarity(noise, copies).abs().mean()) < 0.6
    assert torch.equal(control("blank_copy", copies, [9], [1], lambda: torch.ones(16), 16), torch.ones(9, 16))


@pytest.mark.parametrize("padded", [0, 3])
def test_seeds_depend_on_the_question_and_the_image_and_not_on_padding(padded: int) -> None:
    ids = torch.tensor([[9] * padded + [1, 5, 5, 5, 30, 31, 32, 33, 34, 35, 36, 37, 38]])
    is_image = ids == 5
    (seed,) = sequence_seeds(ids, is_image, torch.zeros_like(ids), [3])
    (plain,) = sequence_seeds(ids[:, padded:], is_image[:, padded:], torch.zeros_like(ids[:, padded:]), [3])
    assert seed == plain
    other = ids.clone()
    other[0, padded + 5] = 40
    assert sequence_seeds(other, is_image, torch.zeros_like(ids), [3]) != (seed,)
    later = ids.clone()
    later[0, -1] = 50
    assert sequence_seeds(later, is_image, torch.zeros_like(ids), [3]) == (seed,)
