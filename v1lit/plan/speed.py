"""How long a step takes, by the operations of its model at a stated share of the peak, and what it sends.

Bytes are those that go into a GPU. A sum over N GPUs by rings sends twice (N - 1) / N of the data into each,
gathering or scattering them once (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009). Between nodes
the data of a node come in over the links of all its GPUs together, as NCCL's rings and trees do.
"""

from __future__ import annotations

from dataclasses import dataclass

from v1lit.backbones.contract import VisionWork
from v1lit.plan.batch import BatchShape
from v1lit.plan.setting import Setting
from v1lit.plan.units import Size
from v1lit.pointer.model import PointAndCopyModel
from v1lit.training.flops import ModelFlops, Work

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


def work_of(model: PointAndCopyModel, shape: BatchShape) -> Work:
    """What a micro-batch costs, in counts of things."""
    one = VisionWork()
    if shape.image is not None:
        one = model.family.vision_work(model.backbone.config, shape.image.tensors)
    return Work(
        tokens=shape.total,
        pairs=shape.examples * shape.tokens**2,
        positions=shape.examples * shape.positions,
        examples=shape.examples,
        vision=VisionWork(*(count * shape.examples for count in one)),
    )


def sent_by(setting: Setting, size: Size, layers: tuple[int, int]) -> Sent:
    """What a step sends: gradients, and with a divided model its weights, forward and backward.

    Args:
        setting: what is planned.
        size: of the whole model.
        layers: how many language layers there are, and the width of their states.
    """
    nodes, gpus, world = setting.nodes, setting.gpus, setting.world
    far = (nodes - 1) / nodes / gpus
    if not setting.sharded:
        gradients = 2 * size.learned * setting.kept.itemsize
        return Sent(gradients * (world - 1) / world, gradients * far)
    place = setting.placement(0)
    reductions = setting.accumulate if setting.reduce_every else 1
    weights = 2 * size.all * place.gathered * setting.accumulate
    gradients = size.learned * place.reduced * reductions
    shards, copies = setting.shards, world // setting.shards
    sums = _sums_of_layers(setting, *layers)
    gathered = (weights + gradients) * (shards - 1) / shards
    # Copies of a model average the gradients of their shards.
    averaged = 2 * gradients / shards * (copies - 1) / copies
    spans = max(1, shards // gpus)
    apart = (weights + gradients) * (spans - 1) / spans / gpus
    return Sent(gathered + averaged + sums, apart + averaged * (copies > 1 and nodes > 1))


def _sums_of_layers(setting: Setting, layers: int, hidden: int) -> float:
    """Bytes of the sums over the GPUs that compute language layers together: two in a layer and pass.

    A layer that is computed again sums in that forward pass again.
    """
    passes = 2 + ("language" in setting.backbone.gradient_checkpointing)
    states = setting.examples * setting.tokens * hidden * setting.compute.products.itemsize
    times = 2 * passes * layers * setting.accumulate
    return 2 * states * times * (setting.tensor - 1) / setting.tensor


def speed_of(
    setting: Setting, model: PointAndCopyModel, shape: BatchShape, size: Size, cluster: Cluster
) -> Speed:
    """The time of a step. Raises ValueError for a family without a formula for its operations."""
    parts = ModelFlops(model).parts(work_of(model, shape))
    alone = {"vision", "projector"}  # the others are computed together
    shares = [flops.total / (1 if part in alone else setting.tensor) for part, flops in parts.items()]
    flops = sum(shares) * setting.accumulate
    text = model.config.get_text_config()
    sent = sent_by(setting, size, (text.num_hidden_layers, text.hidden_size))
    return Speed(
        flops=flops,
        computing=flops / (cluster.peak * cluster.mfu),
        sending=sent.seconds(cluster) if setting.world > 1 else 0.0,
        sent=sent,
        tokens=setting.tokens_per_step,
        world=setting.world,
    )
