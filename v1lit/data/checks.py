"""Options of the data module that cannot be had, alone or together."""

from __future__ import annotations

from v1lit.backbones.config import BackboneConfig
from v1lit.data.config import EncodingConfig, PackingConfig


def check_least(**options: tuple[int, int]) -> None:
    """Raise ValueError for an option of `data` that is less than it may be: `name=(value, least)`."""
    for name, (value, least) in options.items():
        if value < least:
            raise ValueError(f"data.{name} is {value}; give {least} or more")


def check_lengths(packing: PackingConfig, encoding: EncodingConfig) -> None:
    """Raise ValueError where an example may be longer than a row."""
    length, longest = packing.length, encoding.max_tokens
    if length is not None and longest > length:
        raise ValueError(
            f"data.encoding.max_tokens is {longest}, but data.packing.length is {length}: an example may be "
            f"{longest - length} tokens longer than a row; set data.encoding.max_tokens={length} or less, or "
            f"data.packing.length={longest} or more"
        )


def check_packs(packing: PackingConfig, backbone: BackboneConfig, packs: bool) -> None:
    """Raise ValueError where rows are to be filled, and the backbone does not keep their examples apart."""
    if packing.length is not None and not packs:
        raise ValueError(
            f"data.packing.length is {packing.length}, but the backbone {backbone.name!r} cannot keep the "
            "examples of a row apart; set data.packing.length=null, and data.group_by_length=16 or so to pad "
            "little"
        )
