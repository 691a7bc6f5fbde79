"""Controls: something else is copied in place of the patches that were pointed at, with the same lengths.

They tell what the content of a copy does from what more tokens do. What stands in its place depends on the
sequence alone, not on the order of batches: so training, validation and every step of generation agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

MAPPED = ("random_region", "other_image", "shuffled")
"""Controls that copy another patch."""
SEEDING = 8
"""Tokens after the last image token that seed what is drawn for a sequence: of the question, mostly."""


def control(
    name: str,
    copies: Tensor,
    counts: Sequence[int],
    seeds: Sequence[int],
    blank: Callable[[], Tensor],
    hidden: int,
) -> Tensor:
    """`[image_tokens, width]`: what is copied in place of `copies` `[image_tokens, width]`.

    - `random_region`: patches as far apart from each other as the right ones, a quarter to three quarters of
      the image further on
    - `other_image`: the patches of the next sequence's images; those of its own turned by half where no other
      sequence of the batch has images
    - `shuffled`: each patch of the image in another's place
    - `blank_copy`: what the vision tower makes of a blank image
    - `noise_copy`: normal noise of the same norm, that of each vector where a patch has several

    Args:
        name: of the control.
        copies: of all sequences, one behind another.
        counts: image tokens of each sequence.
        seeds: a number for each sequence.
        blank: makes `[width]`, the embedding of a blank patch.
        hidden: width of one vector.
    """
    if name in MAPPED:
        return copies.index_select(0, patches_instead(name, counts, seeds).to(copies.device))
    if name == "blank_copy":
        return blank().to(copies.dtype).expand_as(copies)
    noise = torch.cat(
        [_normal(count, copies.shape[1], seed) for count, seed in zip(counts, seeds, strict=True)]
    )
    noise = noise.to(copies.device).unflatten(1, (-1, hidden))
    norms = copies.detach().float().view_as(noise).norm(dim=2, keepdim=True)
    return (noise * norms / noise.norm(dim=2, keepdim=True)).flatten(1).to(copies.dtype)


def patches_instead(name: str, counts: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """`[image_tokens]`, on the host: the image token that is copied in place of each."""
    starts = list(accumulate(counts, initial=0))
    rows = [torch.empty(0, dtype=torch.long)]
    for index, (count, seed) in enumerate(zip(counts, seeds, strict=True)):
        if not count:
            continue
        draw = torch.Generator().manual_seed(seed)
        if name == "shuffled":
            rows.append(starts[index] + torch.randperm(count, generator=draw))
        elif name == "random_region":
            shift = int(torch.randint(count // 4, max(count // 4, 3 * count // 4) + 1, [], generator=draw))
            rows.append(starts[index] + (torch.arange(count) + shift) % count)
        else:
            rows.append(_of_another(index, counts, starts))
    return torch.cat(rows)


def _of_another(index: int, counts: Sequence[int], starts: Sequence[int]) -> Tensor:
    """The tokens of the next sequence that has any, over and over where they are fewer."""
    others = [(index + step) % len(counts) for step in range(1, len(counts))]
    other = next((sequence for sequence in others if counts[sequence]), None)
    if other is None:
        return starts[index] + torch.arange(counts[index]).flip(0)
    return starts[other] + torch.arange(counts[index]) % counts[other]


def _normal(count: int, hidden: int, seed: int) -> Tensor:
    return torch.randn(count, hidden, generator=torch.Generator().manual_seed(seed))


def sequence_seeds(ids: Tensor, is_image: Tensor, sequence: Tensor, counts: Sequence[int]) -> tuple[int, ...]:
    """A number for every sequence, of its image tokens' number and the tokens that follow the last of them.

    Args:
        ids: `[batch, tokens]`, on the host.
        is_image: `[batch, tokens]`: which of them are image tokens.
        sequence: `[batch, tokens]`: the sequence of every token.
        counts: image tokens of each sequence.
    """
    ids, is_image, sequence = ids.flatten(), is_image.flatten(), sequence.flatten()
    seeds = []
    for index, count in enumerate(counts):
        seed = count
        own = (sequence == index).nonzero()[:, 0]
        last = int(is_image[own].nonzero()[-1]) if count else -1
        for token in ids[own[last + 1 : last + 1 + SEEDING]].tolist():
            seed = (seed * 1_000_003 + token) % (2**31 - 1)
        seeds.append(seed)
    return tuple(seeds)
