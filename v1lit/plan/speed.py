"""How long a step takes, by the operations of its model at a stated share of the peak, and what it sends.

Bytes are those that go into a GPU. A sum over N GPUs by rings sends twice (N - 1) / N of the data into each,
gathering or scattering them once (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009). Between nodes
the data of a node come in over the links of all its GPUs together, as NCCL's rings and trees do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from v1lit.backbones.work import VisionWork
from v1lit.parallel.context_parallel import shared_key_heads
from v1lit.plan.batch import BatchShape
from v1lit.plan.rows import Rows
from v1lit.plan.setting import Setting
from v1lit.plan.units import Size
from v1lit.pointer.model import PointAndCopyModel
from v1lit.training.flops import ModelFlops, Work, pairs_within, window_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

GIGA = 1e9


@dataclass(frozen=True)
class Cluster:
    """What the GPUs and their links can do."""

    peak: float
    """Operations per second of a GPU."""
    mfu: float
    """Share of the peak that a step reaches while it computes."""
    inside: float
    """Bytes per second into a GPU from others of its node."""
    between: float
    """Bytes per second into a GPU from other nodes."""


@dataclass(frozen=True)
class Sent:
    """Bytes that come into a GPU in a step."""

    inside: float
    """From all other GPUs."""
    between: float
    """From other nodes, of the bytes that its node needs from there, a share by its GPUs."""

    def seconds(self, cluster: Cluster) -> float:
        """How long that takes where both go at once."""
        return max(self.inside / cluster.inside, self.between / cluster.between)


@dataclass(frozen=True)
class Speed:
    """A step's time."""

    flops: float
    """Operations of a step on one GPU, without what is computed a second time."""
    computing: float
    """Seconds."""
    sending: float
    """Seconds."""
    sent: Sent
    tokens: int
    """Of all GPUs."""
    world: int

    @property
    def seconds(self) -> float:
        """Of a step, where sending hides behind computing: the longer of the two."""
        return max(self.computing, self.sending)

    @property
    def tokens_per_second(self) -> float:
        """On all GPUs."""
        return self.tokens / self.seconds

    def hours(self, steps: int) -> float:
        """Of this number of steps."""
        return steps * self.seconds / 3600


def work_of(model: PointAndCopyModel, shape: BatchShape, rows: Rows | None = None) -> Work:
    """What a micro-batch costs, in counts of things: one of `shape`, or one of these rows of data.

    Image tokens of data are taken to be of images as in `shape`, and all other tokens to be supervised.
    """
    one = VisionWork()
    if shape.image is not None:
        one = model.family.vision_work(model.backbone.config, shape.image.tensors)
    if rows is not None:
        images = rows.image_tokens / max(1, shape.image_tokens)
        return Work(
            tokens=round(rows.tokens),
            pairs=round(rows.pairs),
            near=round(rows.near),
            positions=round(max(0, rows.tokens - rows.image_tokens - rows.examples)),
            examples=round(rows.examples),
            vision=VisionWork(*(round(count * images) for count in one)),
        )
    return Work(
        tokens=shape.total,
        pairs=shape.examples * shape.tokens**2,
        near=shape.examples * pairs_within(shape.tokens, window_of(model.config.get_text_config())),
        positions=shape.examples * shape.positions,
        examples=shape.examples,
        vision=VisionWork(*(count * shape.examples for count in one)),
    )


class Layers(NamedTuple):
    """What of the language layers decides how much GPUs send that compute them together."""

    number: int
    hidden: int
    """Width of their states."""
    heads: int
    key_heads: int
    head_size: int

    @classmethod
    def of(cls, text: PreTrainedConfig) -> Layers:
        """Those of a text config."""
        heads = text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // heads
        key_heads = getattr(text, "num_key_value_heads", None) or heads
        return cls(text.num_hidden_layers, text.hidden_size, heads, key_heads, size)


def sent_by(setting: Setting, size: Size, layers: Layers) -> Sent:
    """What a step sends: gradients, and with a divided model its weights, forward and backward.

    Args:
        setting: what is planned.
        size: of the whole model.
        layers: the language layers.
    """
    nodes, gpus, world = setting.nodes, setting.gpus, setting.world
    far = (nodes - 1) / nodes / gpus
    if not setting.sharded:
        gradients = 2 * size.learned * setting.learned.itemsize
        return Sent(gradients * (world - 1) / world, gradients * far)
    place = setting.placement(0)
    reductions = setting.accumulate if setting.reduce_every else 1
    weights = 2 * size.all * place.gathered * setting.accumulate
    gradients = size.learned * place.reduced * reductions
    shards, copies = setting.shards, world // setting.shards
    together = _sent_together(setting, layers)
    gathered = (weights + gradients) * (shards - 1) / shards
    # Copies of a model average the gradients of their shards.
    averaged = 2 * gradients / shards * (copies - 1) / copies
    spans = max(1, shards // gpus)
    apart = (weights + gradients) * (spans - 1) / spans / gpus
    return Sent(gathered + averaged + together, apart + averaged * (copies > 1 and nodes > 1))


def _sent_together(setting: Setting, layers: Layers) -> float:
    """Bytes that GPUs send which compute the same batches, with `tensor` or `context`.

    With `tensor` they sum states twice in a layer and pass. With `context` they exchange queries, keys and
    values for those of other tokens and what was attended back, and gather the decoder's states once. A layer
    that is computed again does so again. Either way they share the loss, and sum the gradient of its states.
    """
    gpus, tokens = setting.together, setting.examples * setting.tokens
    states = tokens * layers.hidden
    if setting.context == 1:
        each, once = 4 * states, 2 * states
    else:
        key_heads = layers.key_heads * shared_key_heads(layers.heads, layers.key_heads, gpus)
        own = -(-tokens // gpus)
        each, once = 2 * own * (layers.heads + key_heads) * layers.head_size, 3 * states
    passes = 2 + ("language" in setting.backbone.gradient_checkpointing)
    numbers = (each * passes * layers.number + once) * setting.accumulate
    return numbers * setting.compute.products.itemsize * (gpus - 1) / gpus


def speed_of(
    setting: Setting,
    model: PointAndCopyModel,
    shape: BatchShape,
    size: Size,
    cluster: Cluster,
    rows: Rows | None = None,
) -> Speed:
    """The time of a step, of these rows of data if given.

    Raises ValueError for a family without a formula for its operations.
    """
    work = work_of(model, shape, rows)
    parts = ModelFlops(model).parts(work)
    alone = {"vision", "projector"}  # the others are computed together
    shares = [flops.total / (1 if part in alone else setting.together) for part, flops in parts.items()]
    flops = sum(shares) * setting.accumulate
    row = replace(setting, examples=1, tokens=work.tokens)
    sent = sent_by(row, size, Layers.of(model.config.get_text_config()))
    return Speed(
        flops=flops,
        computing=flops / (cluster.peak * cluster.mfu),
        sending=sent.seconds(cluster) if setting.world > 1 else 0.0,
        sent=sent,
        tokens=row.tokens_per_step,
        world=setting.world,
    )
