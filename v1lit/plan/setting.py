"""What is planned: a recipe's model, strategy and micro-batch, and the GPUs that it would run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from v1lit.backbones.adapters.config import NONE, QLORA, AdapterConfig
from v1lit.backbones.config import BackboneConfig
from v1lit.errors import OptionError, name_allowed
from v1lit.grounding.region import Size
from v1lit.plan.gpu_kernels import Compute
from v1lit.plan.memory import Placement
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import RevisitConfig
from v1lit.training.config import OptimizerConfig
from v1lit.training.optimizer import EMBEDDINGS
from v1lit.training.strategies import NAMES

Strategy = Literal["one", "ddp", "fsdp2", "hsdp"]
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")
GROUP = "trainer.strategy.init_args"
TYPES = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32}
"""By what Lightning's precisions begin with."""


@dataclass(frozen=True)
class Setting:
    """What is planned."""

    backbone: BackboneConfig
    pointer: PointerConfig
    revisit: RevisitConfig
    optimizer: OptimizerConfig
    strategy: Strategy
    precision: str
    accumulate: int
    """Micro-batches of a step on each GPU."""
    nodes: int
    gpus: int
    """GPUs of a node."""
    examples: int
    """Examples of a micro-batch."""
    tokens: int
    """Tokens of each example, those of its image included."""
    image: Size | None
    """Width and height in pixels of each example's image, before the image processor; None for text alone."""
    shard: int | None = None
    """GPUs that a model is divided over; None for what the strategy's name says."""
    tensor: int = 1
    """Of these, GPUs of a node that compute the same batches, each with a part of the language layers."""
    context: int = 1
    """Instead, GPUs of a node that compute the same rows, each with a part of the tokens in the decoder."""
    reduce_every: bool = False
    """Whether gradients are summed over GPUs after every micro-batch."""
    config: str | None = None
    """A `config.json` in place of that of the weights."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameters that do not learn."""
    adapter: AdapterConfig = NONE
    """Adapters that learn in place of the backbone."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise OptionError(
                "precision", self.precision, name_allowed(self.precision, PRECISIONS), "trainer"
            )
        if self.sharded and self.precision == "16-mixed":
            why = "a sharded model has no loss scale; use bf16-mixed"
            raise OptionError("precision", self.precision, why, "trainer")
        if self.sharded and self.world % self.shards:
            why = f"{self.world} GPUs cannot be divided by it"
            raise OptionError("shard", self.shard, why, GROUP)
        if self.tensor != 1 and self.context != 1:
            why = f"GPUs share matrices or tokens, not both, and tensor is {self.tensor}; leave one out"
            raise OptionError("context", self.context, why, GROUP)
        if self.together < 1 or self.gpus % self.together or self.shards % self.together:
            why = f"the {self.gpus} GPUs of a node and the {self.shards} of a model cannot be divided by it"
            raise OptionError(*self.inner, why, GROUP)
        if self.sharded and self.adapter.kind == QLORA:
            why = "weights in 4 bits are not divided over GPUs\ntake lora, or trainer.strategy=ddp"
            raise OptionError("kind", self.adapter.kind, why, "model.adapter")
        if self.strategy == "one" and self.world > 1:
            why = f"{self.world} GPUs need ddp, fsdp2 or hsdp: --trainer.strategy=fsdp2"
            raise OptionError("strategy", self.strategy, why, "trainer")

    @property
    def world(self) -> int:
        """GPUs of all nodes."""
        return self.nodes * self.gpus

    @property
    def sharded(self) -> bool:
        """Whether a GPU holds a share of every weight."""
        return self.strategy in ("fsdp2", "hsdp")

    @property
    def shards(self) -> int:
        """GPUs that a copy of the model is divided over."""
        if not self.sharded:
            return 1
        return self.shard or (self.gpus if self.strategy == "hsdp" else self.world)

    @property
    def inner(self) -> tuple[str, int]:
        """The option by which GPUs compute the same batches, and how many do."""
        return ("tensor", self.tensor) if self.context == 1 else ("context", self.context)

    @property
    def together(self) -> int:
        """GPUs that compute the same batches, and share the supervised positions."""
        return self.tensor * self.context

    @property
    def kept(self) -> torch.dtype:
        """Type of the weights that are kept, at least of those that do not learn."""
        kind, _, how = self.precision.partition("-")
        if how == "true" and kind != "32":
            return TYPES[kind]
        # Published checkpoints are in bfloat16.
        return {"auto": torch.bfloat16}.get(self.backbone.dtype) or getattr(torch, self.backbone.dtype)

    @property
    def learned(self) -> torch.dtype:
        """Type of the weights that learn, and of their gradients and moments."""
        return learned_type(self.adapter, self.precision, self.kept)

    @property
    def compute(self) -> Compute:
        """In which types a step computes."""
        kind, _, how = self.precision.partition("-")
        mixed = TYPES[kind] if how == "mixed" else None
        if self.sharded:
            return Compute(mixed or self.kept, None, gpu=True)
        return Compute(self.kept, mixed, gpu=True, learned=self.learned)

    def placement(self, moments: float, unpacked: int = 0) -> Placement:
        """How the model is spread.

        moments: bytes of optimizer state for a weight that learns; unpacked: numbers in the largest matrix
        that is kept in 4 bits.
        """
        return Placement(
            whole=not self.sharded,
            buckets=self.strategy == "ddp",
            shards=self.shards,
            tensor=self.tensor,
            weight=self.learned.itemsize,
            frozen=self.kept.itemsize,
            unpacked=unpacked * self.compute.products.itemsize,
            gathered=self.compute.weights.itemsize,
            reduced=4,
            moments=moments,
            accumulate=self.accumulate,
            reduce_every=self.reduce_every,
        )

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step, on all GPUs."""
        return self.world // self.together * self.accumulate

    @property
    def examples_per_step(self) -> int:
        """Examples of a step, on all GPUs."""
        return self.micro_batches * self.examples

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step, on all GPUs."""
        return self.examples_per_step * self.tokens


def learned_type(adapter: AdapterConfig, precision: str, kept: torch.dtype) -> torch.dtype:
    """Type of the weights that learn where the others are kept in `kept`: float32 beside adapters.

    precision: as Lightning calls it; a `-true` half precision is that of every weight.
    """
    alike = not adapter or precision in ("bf16-true", "16-true")
    return kept if alike else torch.float32


def moment_bytes(model: PointAndCopyModel, optimizer: OptimizerConfig, kept: torch.dtype) -> float:
    """Bytes of optimizer state for a weight that learns, on average.

    AdamW keeps two moments in the type of the weight, its 8-bit version two bytes and a share of a table,
    Muon one moment of every hidden matrix. An average of the weights is a further one.
    """
    average = kept.itemsize if optimizer.ema_decay is not None else 0
    if optimizer.name == "adamw8bit":
        return 2 + 2 * 4 / 256 + average
    if optimizer.name == "adamw":
        return 2 * kept.itemsize + average
    numbers = {True: 0, False: 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            hidden = parameter.ndim == 2 and not any(mark in name for mark in EMBEDDINGS)
            numbers[hidden] += parameter.numel()
    learned = max(1, sum(numbers.values()))
    return (numbers[True] + 2 * numbers[False]) * kept.itemsize / learned + average


def strategy_of(trainer: dict[str, Any], nodes: int, gpus: int) -> dict[str, Any]:
    """The arguments of a `Setting` that a recipe's trainer decides.

    Raises OptionError for a strategy whose memory is not known.
    """
    given = trainer.get("strategy") or "auto"
    options: dict[str, Any] = {}
    if isinstance(given, dict):
        options = given.get("init_args") or {}
        given = str(given.get("class_path", "")).rpartition(".")[2]
    if given == "auto":
        return {"strategy": "one" if nodes * gpus == 1 else "ddp"}
    if str(given).startswith(("ddp", "DDP")):
        return {"strategy": "ddp"}
    if given not in ("Sharded", *NAMES):
        why = name_allowed(given, ["auto", "ddp", *NAMES])
        raise OptionError("strategy", given, why, "trainer")
    options = {**NAMES.get(given, {}), **options}
    named = {"all": nodes * gpus, "node": gpus}
    shard = options.get("shard", "all")
    tensor, context = options.get("tensor", 1), options.get("context", 1)
    return {
        "strategy": "hsdp" if shard == "node" else "fsdp2",
        "shard": shard if isinstance(shard, int) else None,
        "tensor": named.get(tensor, tensor),
        "context": named.get(context, context),
        "reduce_every": bool(options.get("reduce_every_micro_batch")),
    }
