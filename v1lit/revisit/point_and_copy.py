"""Point at the patches of a region, and copy their embeddings into the stream: v1 itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from transformers import LogitsProcessor

from v1lit.errors import check_choices, check_least
from v1lit.grounding.markup import REGION, REGION_END
from v1lit.grounding.patch_map import region_tokens
from v1lit.grounding.region import Region, format_box
from v1lit.revisit.copy_order import in_order
from v1lit.revisit.run_ends import RunEnds
from v1lit.revisit.strategy import GROUP, EncodeText, LookModule, RegionWriter, Strategy
from v1lit.revisit.suppression import Suppression


@dataclass(frozen=True)
class PointAndCopy(Strategy):
    """`<region>[x1, y1, x2, y2]pointers</region>`; a pointer's input is the embedding of its patch.

    Source: jun297/v1, v1/processor.py, lines 398-424. What differs from `scan` order, limits and detached
    copies is what arXiv 2505.18842 leaves to future work.
    """

    detach: bool = False
    """Let no gradient flow from a copy into the image."""
    order: Literal["scan", "nearest", "overlap"] = "scan"
    """Of a region's patches: row by row, nearest to its centre first, or those that it covers most first."""
    max_copies: int | None = None
    """Patches of a region at most: the first ones in this order."""
    suppress: Literal["none", "region", "trace"] = "none"
    """Which patches cannot be pointed at again at a decoding step: none, those of the region that is being
    written, or all that were pointed at before. Training stays as it is: where a patch belongs to several
    regions of an example, labels of teacher forcing contradict `trace`."""

    end: Literal["text", "pointer"] = "text"
    """What ends a run: the text behind it, or one choice more of the pointer head, "no more points". Source:
    MolmoPoint, arXiv 2603.28069."""

    GROUP: ClassVar[str] = GROUP

    def __post_init__(self) -> None:
        check_choices(self)
        check_least(self, 1, "max_copies")

    @property
    def ends(self) -> bool:
        return self.end == "pointer"

    def write_region(self, sequence: RegionWriter, name: str, region: Region, learn: bool) -> None:
        before = REGION
        if sequence.coordinates:
            before += format_box(region.box, sequence.patch_maps[region.image].image_size)
        sequence.add_text(before, learn)
        tokens = in_order(sequence.patch_maps, region, region_tokens(sequence.patch_maps, region), self.order)
        self.write_pointers(sequence, name, region, tokens[: self.max_copies], learn)
        if self.ends and tokens:
            sequence.add_end(learn)
        sequence.add_text(REGION_END, learn)

    def write_pointers(
        self, sequence: RegionWriter, name: str, region: Region, tokens: list[int], learn: bool
    ) -> None:
        """Append pointers to these image tokens, which are in the order asked for."""
        sequence.add_pointers(name, region, tokens, learn)

    def copies(self, values: Tensor, learned: LookModule | None) -> Tensor:
        return values.detach() if self.detach else values

    def steering(
        self, pointer_start: int, image_token_id: int, encode_text: EncodeText | None
    ) -> list[LogitsProcessor]:
        steering: list[LogitsProcessor] = []
        if self.suppress != "none":
            spared = image_token_id if self.ends else None
            steering.append(Suppression(pointer_start, self.suppress == "region", spared))
        if self.ends:
            steering.append(RunEnds(pointer_start, image_token_id))
        return steering
