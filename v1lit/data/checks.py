"""Options of the data module that do not go together."""

from __future__ import annotations

from v1lit.backbones.config import BackboneConfig
from v1lit.data.config import EncodingConfig, PackingConfig
from v1lit.errors import OptionError


def check_lengths(packing: PackingConfig, encoding: EncodingConfig) -> None:
    """Raise OptionError where an example may be longer than a row."""
    length, longest = packing.length, encoding.max_tokens
    if length is not None and longest > length:
        why = (
            f"data.packing.length is {length}, so an example may be {longest - length} tokens longer than a "
            f"row: set data.encoding.max_tokens={length} or less, or data.packing.length={longest} or more"
        )
        raise OptionError("max_tokens", longest, why, encoding.GROUP)


def check_packs(packing: PackingConfig, backbone: BackboneConfig, packs: bool) -> None:
    """Raise OptionError where rows are to be filled, and the backbone does not keep their examples apart."""
    if packing.length is not None and not packs:
        why = (
            f"the backbone {backbone.name!r} cannot keep the examples of a row apart: set "
            "data.packing.length=null, and data.group_by_length=16 or so to pad little"
        )
        raise OptionError("length", packing.length, why, packing.GROUP)
