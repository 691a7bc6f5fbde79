"""Which way of looking again: the part of a recipe under `model.revisit`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from v1lit.errors import OptionError, check_choices

ControlName = Literal["none", "random_region", "other_image", "shuffled", "blank_copy", "noise_copy"]
When = Literal["training", "decoding", "both"]


@dataclass(frozen=True)
class RevisitConfig:
    """A strategy with its options, and a control that spoils what it copies."""

    name: str = "point_and_copy"
    """Registered strategy; `v1lit list` names them all."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the strategy, checked against what it takes."""
    control: ControlName = "none"
    """What is copied in place of the patches that were pointed at; lengths and work stay the same."""
    control_when: When = "both"
    """Whether the control is applied in training, outside of it (validation and generation), or in both."""

    GROUP: ClassVar[str] = "revisit"

    def __post_init__(self) -> None:
        check_choices(self)
        if not isinstance(self.options, Mapping):
            raise OptionError("options", self.options, "it is a mapping", self.GROUP)


POINT_AND_COPY = RevisitConfig()
"""What a recipe has that does not say."""
