"""The state of optimizers by the names of parameters, where a single file has their numbers.

A number means something only together with the optimizer that gave it; a name means the same on any number of
ranks. Which number has which name is written down with the state, so that each form becomes the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from v1lit.errors import first_of

Numbered = dict[str, Any]
"""What the `state_dict` of an optimizer returns."""
Names = list[list[str]]
"""The names of an optimizer's parameters by number; of several that step as one, a list for each."""
PREFIX = "optimizer."


def parameter_names(optimizer: Optimizer, module: nn.Module) -> Names:
    """How a module calls the parameters of its optimizer."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    inner: list[Optimizer] = getattr(optimizer, "optimizers", [optimizer])  # of several that step as one
    return [[names[id(p)] for group in one.param_groups for p in group["params"]] for one in inner]


def to_named(state: Numbered, names: Names) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a state as `optimizer.KEY.NAME`, and the rest, with which `to_numbered` undoes it.

    Scalars, such as the number of steps, are of the rest. Raises ValueError where the state is of another
    number of parameters.
    """
    tensors: dict[str, Tensor] = {}
    inner = []
    for one, own in zip(_inner(state, len(names)), names, strict=True):
        count = sum(len(group["params"]) for group in one["param_groups"])
        if count != len(own):
            raise ValueError(f"the optimizer's state is of {count} parameters, and not of {len(own)}")
        scalars: dict[str, dict[str, Any]] = {}
        for number, values in one["state"].items():
            scalars[own[number]] = {}
            for key, value in values.items():
                if isinstance(value, Tensor) and value.ndim:
                    tensors[f"{PREFIX}{key}.{own[number]}"] = value
                else:
                    scalars[own[number]][key] = value
        keys = sorted({key for values in one["state"].values() for key in values})
        inner.append({"names": own, "scalars": scalars, "keys": keys, "param_groups": one["param_groups"]})
    return tensors, {"together": "optimizers" in state, "inner": inner}


def to_numbered(
    rest: Mapping[str, Any],
    stored: Sequence[str],
    read: Callable[[str, str], Tensor],
    names: Names | None = None,
) -> Numbered:
    """The state as an optimizer loads it.

    Args:
        rest: what `to_named` returned beside the tensors.
        stored: names of tensors; those that begin with `optimizer.` are used.
        read: returns a tensor of the state, from its stored name and that of its parameter.
        names: of the optimizer that will load it; those that it had when not given.

    Raises ValueError for a state of parameters that this optimizer does not have.
    """
    keys: dict[str, list[tuple[str, str]]] = {}
    for full in stored:
        if full.startswith(PREFIX):
            key, _, name = full.removeprefix(PREFIX).partition(".")
            keys.setdefault(name, []).append((key, full))
    made: list[Numbered] = []
    wanted = names or [one["names"] for one in rest["inner"]]
    _refuse_others(rest, wanted)
    for one, own in zip(rest["inner"], wanted, strict=True):
        state = {
            number: {
                **one["scalars"][name],
                **{key: read(full, name) for key, full in keys.get(name, []) if key in one["keys"]},
            }
            for number, name in enumerate(own)
            if name in one["scalars"]
        }
        made.append({"state": state, "param_groups": one["param_groups"]})
    return {"optimizers": made} if rest["together"] else made[0]


def _refuse_others(rest: Mapping[str, Any], wanted: Names) -> None:
    had = [sorted(one["names"]) for one in rest["inner"]]
    have = [sorted(own) for own in wanted]
    if had != have:
        flat = {name for own in had for name in own} ^ {name for own in have for name in own}
        differ = first_of(sorted(flat)) if flat else "they are shared out in another way"
        raise ValueError(f"the optimizer's state is of other parameters than are trained now: {differ}")


def _inner(state: Numbered, count: int) -> list[Numbered]:
    inner: list[Numbered] = state.get("optimizers", [state])
    if len(inner) != count:
        raise ValueError(f"the optimizer's state is of {len(inner)} optimizers that step as one, not {count}")
    return inner
