"""The moments of a step on paper, and what is held in each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from torch import Tensor, nn

from v1lit.plan.paper import Paper

Phase = Literal["forward", "backward"]


class Level(NamedTuple):
    """Bytes that are held at one moment, of what does not depend on the strategy."""

    activations: int
    copies: int
    """Weights in the type of the products, which autocast makes."""
    gradients: int
    """Of weights, made since the moment began."""

    @property
    def total(self) -> int:
        return sum(self)


EMPTY = Level(0, 0, 0)


@dataclass
class Moment:
    """A stretch of a step in which one unit computes."""

    unit: str
    phase: Phase
    fullest: Level = EMPTY
    """Where most is held, if gradients stay."""
    passing: Level = EMPTY
    """Where most is held, if gradients are added to others and freed."""
    gradients: dict[str, int] = field(default_factory=dict)
    """Numbers in the gradients that were made, by unit."""
    before: Level = EMPTY
    """What is held when it begins."""
    after: Level = EMPTY
    """What is held at the end."""

    def moved(self, start: Level) -> Moment:
        """The same moment, if it had begun with what is held at `start`."""
        shift = start.activations - self.before.activations, start.copies - self.before.copies

        def held(name: str) -> Level:
            one: Level = getattr(self, name)
            return Level(one.activations + shift[0], one.copies + shift[1], one.gradients)

        return Moment(self.unit, self.phase, held("fullest"), held("passing"), {}, start, held("after"))


class Recorder(Paper):
    """Tensors on paper, whose live bytes are noted by moments."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[Moment] = []
        self.backward = False
        self._made = 0
        self._like: Moment | None = None
        self.repeated: list[str] = []
        """For each layer that is only noted, the unit that it is noted like."""
        self._copied_by: dict[int, str] = {}
        self._let_go: dict[str, int] = {}
        """Bytes of copies that were freed in the forward pass, by the unit that made them."""

    def autocast_ended(self) -> None:
        """Autocast lets go of its copies of weights: those of layers that are only noted, too."""
        self.copies -= sum(self._let_go.get(unit, 0) for unit in self.repeated)

    def _note(self, tensor: Tensor, is_copy: bool) -> None:
        if is_copy:
            self._copied_by[tensor.untyped_storage()._cdata] = self.unit
        super()._note(tensor, is_copy)

    def _freed(self, key: int, is_copy: bool) -> None:
        unit = self._copied_by.pop(key, "")
        if is_copy and not self.backward:
            self._let_go[unit] = self._let_go.get(unit, 0) + self._sizes[key]
        super()._freed(key, is_copy)

    def begin(self, unit: str, like: Moment | None = None) -> None:
        """The moment at which `unit` begins to compute; if it does not, `like` says what it would hold."""
        self._close()
        self._made = 0
        start = Level(self.live, self.copies, 0)
        moment = Moment(unit, "backward" if self.backward else "forward", before=start)
        if like is not None:
            moment = replace(like.moved(start), unit=unit)
            own = like.gradients.get(like.unit)  # those of other units are really made
            moment.gradients = {} if own is None else {unit: own}
        self._like = like
        self.moments.append(moment)
        self.noted()

    @property
    def unit(self) -> str:
        """What computes now."""
        return self.moments[-1].unit if self.moments else ""

    def noted(self) -> None:
        super().noted()
        if not self.moments or self._like is not None:
            return
        moment = self.moments[-1]
        if self.live + self.copies + self._made > moment.fullest.total:
            moment.fullest = Level(self.live, self.copies, self._made)
        if self.live + self.copies > moment.passing.total:
            moment.passing = Level(self.live, self.copies, 0)

    def _close(self) -> None:
        if not self.moments:
            return
        moment = self.moments[-1]
        if self._like is not None:  # what was really made in it is not what would be
            self.live, self.copies, _ = moment.after
        moment.after = Level(self.live, self.copies, 0)

    def finish(self) -> list[Moment]:
        """All moments."""
        self._close()
        return self.moments

    def take_gradient(self, parameter: nn.Parameter, unit: str) -> None:
        """Note the gradient of a parameter, and let it go."""
        gradient = parameter.grad
        assert gradient is not None
        self._made += gradient.untyped_storage().nbytes()
        made = self.moments[-1].gradients
        made[unit] = made.get(unit, 0) + gradient.numel()
        parameter.grad = None
