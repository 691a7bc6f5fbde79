"""Options of adapters: the part of a recipe under `model.adapter`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from v1lit.errors import OptionError, check_choices, check_fields, check_least, name_allowed

Kind = Literal["lora", "dora", "qlora"]
KINDS: tuple[str, ...] = get_args(Kind)
LORA, DORA, QLORA = KINDS
Adapted = Literal["language", "projector", "vision"]
"""Parts whose linear layers can have adapters."""
Whole = Literal["embeddings", "projector", "vision"]
"""Parts that can be trained beside adapters, as they are."""
EMBEDDINGS = "embeddings"
"""The input embeddings and the language-model head, which are inside the language part."""


@dataclass(frozen=True)
class AdapterConfig:
    """Adapters: which, how large, on what; the backbone itself is frozen where there are any.

    What learns beside a backbone in half precision stays in float32.
    """

    kind: Kind | None = None
    """`lora` (arXiv 2106.09685), `dora` (arXiv 2402.09353: the length of every row learns by itself), `qlora`
    (arXiv 2305.14314: LoRA on weights that are kept in 4 bits; needs bitsandbytes), or null for none."""
    rank: int = 16
    """Inner width of an adapter's two matrices."""
    alpha: float = 32.0
    """An adapter's output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Share of an adapter's inputs that is set to zero in training."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead (arXiv 2312.03732)."""
    parts: list[Adapted] = field(default_factory=lambda: ["language"])
    """Parts whose linear layers have adapters; never the language-model head."""
    modules: list[str] = field(default_factory=lambda: ["*"])
    """Which of these layers, as patterns (`fnmatch`) of their paths in the backbone, such as `*.q_proj`."""
    train: list[Whole] = field(default_factory=list)
    """Parts that are trained whole beside the adapters: `embeddings`, `projector`, `vision`. The pointer head
    always is, unless `model.backbone.freeze` names it."""

    GROUP: ClassVar[str] = "adapter"

    def __post_init__(self) -> None:
        key = f"model.{self.GROUP}"
        if self.kind is not None and self.kind not in KINDS:
            raise OptionError("kind", self.kind, f"{name_allowed(self.kind, KINDS)}, null", key)
        check_choices(self)
        check_least(self, 1, "rank")
        check_fields(self, ["alpha"], lambda alpha: alpha > 0, "it must be positive")
        check_fields(self, ["dropout"], lambda share: 0 <= share < 1, "it is a share, from 0 to below 1")
        for name in ("parts", "modules"):
            if not getattr(self, name):
                raise OptionError(name, [], "name at least one, or set kind to null", key)
        if both := sorted(set(self.parts) & set(self.train)):
            why = f"{both[0]} has adapters by {key}.parts; a part has those or learns itself"
            raise OptionError("train", list(self.train), why, key)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self.kind is not None


NONE = AdapterConfig()
