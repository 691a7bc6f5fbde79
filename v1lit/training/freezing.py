"""Freezing by pattern: parameters that do not learn, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import prod

from torch import nn

from v1lit.errors import OptionError, first_of
from v1lit.parallel.tensors import whole_shape


def freeze_matching(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Switch off gradients of parameters whose names match; returns a line of what each pattern has frozen.

    Args:
        model: its names are those of `named_parameters`; tied ones are frozen under any of their names.
        patterns: as of `fnmatch`, upper and lower case apart.

    Raises OptionError for a pattern that matches no name, with the nearest ones.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    lines = []
    for pattern in patterns:
        hit = {id(own): own for name, own in named.items() if fnmatchcase(name, pattern)}
        if not hit:
            near = get_close_matches(pattern.replace("*", ""), named, n=3, cutoff=0.0)
            why = f"{pattern!r} matches no parameter of the model; near: {first_of(near)}"
            raise OptionError("freeze", list(patterns), why, "model")
        fresh = [own for own in hit.values() if own.requires_grad]
        for own in fresh:
            own.requires_grad_(False)
        rest = f", {len(hit) - len(fresh)} were frozen before" if len(fresh) < len(hit) else ""
        numbers = sum(prod(whole_shape(own)) for own in fresh)
        lines.append(f"model.freeze: {pattern} freezes {len(fresh)} parameters ({numbers:,} numbers){rest}")
    return lines
