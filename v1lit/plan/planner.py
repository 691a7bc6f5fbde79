"""`Planner`: the memory of a setting, the largest micro-batch that fits, and what to change if none does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from v1lit.errors import OptionError
from v1lit.parallel.context_parallel import refuse_sharing
from v1lit.parallel.tensor_parallel import IndivisibleError
from v1lit.plan.architecture import model_config, model_on_meta, split_layers
from v1lit.plan.batch import BatchShape, ImageShape
from v1lit.plan.memory import Memory, fullest
from v1lit.plan.moments import Level, Moment
from v1lit.plan.setting import GROUP, Setting, moment_bytes
from v1lit.plan.timeline import record
from v1lit.plan.units import NOTHING, Size, packed_weights, part_sizes, unit_sizes
from v1lit.pointer.model import PointAndCopyModel

MOST_NODES = 128
"""Nodes up to which more of them are tried."""
MOST_EXAMPLES = 2**14
"""Examples of a micro-batch up to which more are tried."""
ENOUGH = 4096
"""Tokens of one GPU with which the buffer of the loss is full."""


class Change(NamedTuple):
    """A change to a recipe, after all those before it, and what a GPU then holds."""

    what: str
    setting: Setting
    memory: Memory


class Planner:
    """Plans settings; steps on paper are kept, since many settings share one."""

    def __init__(self) -> None:
        self._steps: dict[Any, list[Moment]] = {}

    def model(self, setting: Setting) -> PointAndCopyModel:
        """The model, on the meta device."""
        config = model_config(setting.backbone, setting.config)
        parts = setting.backbone, setting.pointer, setting.revisit, setting.freeze, setting.adapter
        return model_on_meta(config, *parts)

    def part(self, setting: Setting) -> PointAndCopyModel:
        """The model with the part of the language layers that a GPU computes; elsewhere it is whole.

        Raises OptionError where the GPUs cannot share the layers or their attention.
        """
        model = self.model(setting)
        try:
            if setting.tensor > 1:
                split_layers(model, setting.tensor)
            refuse_sharing(model.config.get_text_config(), setting.context)
        except IndivisibleError as error:
            raise OptionError(*setting.inner, str(error), GROUP) from error
        return model

    def shape(self, setting: Setting) -> BatchShape:
        """The micro-batch."""
        image = None if setting.image is None else ImageShape.of(setting.backbone, setting.image)
        return BatchShape(setting.examples, setting.tokens, image, setting.together, setting.context)

    def sizes(self, setting: Setting) -> dict[str, Size]:
        """The size of every part."""
        return part_sizes(self.model(setting))

    def size(self, setting: Setting) -> Size:
        """The size of what a GPU gathers in all."""
        return sum(part_sizes(self.part(setting)).values(), NOTHING)

    def memory(self, setting: Setting) -> Memory:
        """What a GPU holds at the fullest moment of a step."""
        return self._memory(setting, self._step(setting))

    def activations(self, setting: Setting, *recomputed: str) -> int:
        """Bytes of activations when the forward pass ends, with checkpointing of these parts."""
        moments = self._step(_recomputing(setting, *recomputed))
        forward = [moment for moment in moments if moment.phase == "forward"]
        return forward[-2].after.activations

    def largest(self, setting: Setting, limit: float) -> tuple[int, Memory] | None:
        """The most examples of a micro-batch with which a GPU holds at most `limit` bytes; None if not one.

        All that is held grows evenly with the examples, so two steps on paper say what any number holds.
        Both fill the buffer of the loss, which is bounded.
        """
        few = -(-ENOUGH * setting.together // setting.tokens)
        one, two = (self._step(replace(setting, examples=examples)) for examples in (few, 2 * few))

        def guess(examples: int) -> Memory:
            moments = [_ahead(a, b, examples / few - 1) for a, b in zip(one, two, strict=True)]
            return self._memory(replace(setting, examples=examples), moments)

        if guess(1).total > limit:
            return None
        low, high = 1, 2
        while guess(high).total <= limit and high < MOST_EXAMPLES:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if guess(middle).total <= limit else (low, middle)
        return low, guess(low)

    def changes(self, setting: Setting, limit: float) -> Iterator[Change]:
        """What to change, in order, each after those before it, until a GPU holds at most `limit` bytes."""
        for what, changed in _changes(setting):
            memory = self.memory(changed)
            yield Change(what, changed, memory)
            if memory.total <= limit:
                return

    def _memory(self, setting: Setting, moments: list[Moment]) -> Memory:
        model = self.part(setting)
        states = moment_bytes(model, setting.optimizer, setting.learned)
        unpacked = max((weight.numel() for weight in packed_weights(model)), default=0)
        placement = setting.placement(states, unpacked)
        return fullest(moments, unit_sizes(model), placement)

    def _step(self, setting: Setting) -> list[Moment]:
        key = repr((setting.backbone, setting.pointer, setting.config, setting.compute, setting.image))
        key += f" {setting.examples} {setting.tokens} {setting.tensor} {setting.context} {setting.freeze}"
        key += f" {setting.adapter}"
        if key not in self._steps:
            self._steps[key] = record(self.part(setting), self.shape(setting), setting.compute)
        return self._steps[key]


def _ahead(one: Moment, two: Moment, times: float) -> Moment:
    """A moment of more examples, from those of some and of twice as many."""

    def further(name: str) -> Level:
        pairs = zip(getattr(one, name), getattr(two, name), strict=True)
        return Level(*(round(a + times * (b - a)) for a, b in pairs))

    kept = {name: further(name) for name in ("fullest", "passing", "after")}
    return Moment(one.unit, one.phase, gradients=one.gradients, **kept)


def _recomputing(setting: Setting, *parts: Any) -> Setting:
    return replace(setting, backbone=replace(setting.backbone, gradient_checkpointing=list(parts)))


def _changes(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """Changes that save memory, the ones that cost least first; each keeps those before it."""
    if set(setting.backbone.gradient_checkpointing) != {"language", "vision"}:
        setting = _recomputing(setting, "language", "vision")
        yield "--model.backbone.gradient_checkpointing=[language,vision]", setting
    if setting.precision == "32-true":
        setting = replace(setting, precision="bf16-mixed")
        yield "--trainer.precision=bf16-mixed", setting
    if not setting.sharded and setting.world > 1:
        setting = replace(setting, strategy="fsdp2", shard=None)
        yield "--trainer.strategy=fsdp2", setting
    if setting.sharded and setting.accumulate > 1 and not setting.reduce_every:
        setting = replace(setting, reduce_every=True)
        yield "reduce_every_micro_batch: true of the strategy, which sends more", setting
    while setting.examples > 1:
        half = setting.examples // 2
        accumulate = setting.accumulate * setting.examples // half
        setting = replace(setting, examples=half, accumulate=accumulate)
        if setting.sharded:
            setting = replace(setting, reduce_every=True)
        yield f"micro-batches of {half} examples, --trainer.accumulate_grad_batches={accumulate}", setting
    while setting.sharded and setting.nodes < MOST_NODES:
        setting = replace(setting, strategy="fsdp2", shard=None, nodes=2 * setting.nodes)
        yield f"--nodes {setting.nodes}, the model divided over all GPUs", setting
    if setting.optimizer.name == "adamw":
        setting = replace(setting, optimizer=replace(setting.optimizer, name="adamw8bit"))
        yield "--model.optimizer.name=adamw8bit, moments in 8 bits", setting
    if setting.precision != "bf16-true":
        setting = replace(setting, precision="bf16-true")
        yield "--trainer.precision=bf16-true, which rounds small updates away", setting
