"""The loss over vocabulary and pointers: a readable reference, and the same in chunks.

Both take supervised positions only, so the cost scales with labels, not tokens. One position's classes are
the `V = pointer_start` vocabulary ids and then the pointers of its example; masked pointers hold the lowest
float.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from v1lit.pointer.config import PointerConfig


@dataclass
class LossTerms:
    """What the loss is made of. Terms are sums over positions, to be divided once, by the counts."""

    sums: dict[str, Tensor]
    """`joint`, or separately `text` and `pointer`; `z` (unweighted) where it has a weight. float32 []."""
    counts: dict[str, int]
    """Positions behind each sum."""
    predictions: Tensor
    """Most likely class at every position, `[positions]`; detached."""

    def total(self, z_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise and its parts, means over positions; the z part already has its weight."""
        parts = {name: value / max(1, self.counts[name]) for name, value in self.sums.items()}
        if "z" in parts:
            parts["z"] = z_weight * parts["z"]
        return torch.stack(list(parts.values())).sum(), parts


@dataclass(frozen=True)
class LossInputs:
    """Supervised positions of a batch."""

    hidden: Tensor
    """Last hidden states, `[positions, hidden]`."""
    head: Tensor
    """Weight of the language-model head, `[vocabulary, hidden]`."""
    pointer_logits: Tensor
    """float32 `[positions, pointers]`, lowest float where masked."""
    labels: Tensor
    """Class of every position: a vocabulary id, or `pointer_start + j`. `[positions]`."""
    gate: Tensor | None
    """g of every position, `[positions, 1]`, or None."""


def pointer_loss(inputs: LossInputs, pointer_start: int, config: PointerConfig) -> LossTerms:
    """The loss, never holding `[positions, vocabulary]`: chunks are recomputed in the backward pass."""
    totals: dict[str, list[Tensor]] = {}
    predictions = []
    for start in range(0, inputs.labels.shape[0], config.loss_chunk):
        part = _slice(inputs, start, start + config.loss_chunk)
        tensors = (part.hidden, part.head, part.pointer_logits, part.labels, part.gate)
        sums, predicted = checkpoint(_chunk, *tensors, pointer_start, config, use_reentrant=False)
        for name, value in sums.items():
            totals.setdefault(name, []).append(value)
        predictions.append(predicted)
    if not predictions:
        zero = inputs.hidden.sum() * 0.0 + inputs.pointer_logits.sum() * 0.0
        return LossTerms({"joint": zero.float()}, {"joint": 0}, inputs.labels)
    sums = {name: torch.stack(values).sum() for name, values in totals.items()}
    return LossTerms(sums, _counts(inputs.labels, pointer_start, sums), torch.cat(predictions))


def reference_loss(inputs: LossInputs, pointer_start: int, config: PointerConfig) -> LossTerms:
    """The same at once, holding all logits: the specification that the chunked loss is tested against."""
    sums, predictions = _chunk(
        inputs.hidden, inputs.head, inputs.pointer_logits, inputs.labels, inputs.gate, pointer_start, config
    )
    return LossTerms(sums, _counts(inputs.labels, pointer_start, sums), predictions)


def joint_logits(vocabulary: Tensor, pointers: Tensor, gate: Tensor | None, pointer_start: int) -> Tensor:
    """`[vocabulary logits[:V] ; pointer logits]` in float32, each side scaled by the gate, if any."""
    text = vocabulary[..., :pointer_start].float()
    if gate is None:
        return torch.cat([text, pointers], dim=-1)
    masked = pointers <= torch.finfo(pointers.dtype).min
    gated = (gate * pointers).masked_fill(masked, torch.finfo(pointers.dtype).min)
    return torch.cat([(1 - gate) * text, gated], dim=-1)


def _chunk(
    hidden: Tensor,
    head: Tensor,
    pointers: Tensor,
    labels: Tensor,
    gate: Tensor | None,
    pointer_start: int,
    config: PointerConfig,
) -> tuple[dict[str, Tensor], Tensor]:
    vocabulary = F.linear(hidden, head)
    logits = joint_logits(vocabulary, pointers, gate, pointer_start)
    predictions = logits.detach().argmax(dim=-1)
    is_text = labels < pointer_start
    if config.loss == "separate":
        text = vocabulary.float() if gate is None else (1 - gate) * vocabulary.float()
        sums = {
            "text": cross_entropy(text[is_text], labels[is_text], config.label_smoothing),
            "pointer": cross_entropy(
                logits[:, pointer_start:][~is_text], labels[~is_text] - pointer_start, config.label_smoothing
            ),
        }
    else:
        sums = {"joint": cross_entropy(logits, labels, config.label_smoothing)}
        if config.z_weight > 0:
            top = (
                logits
                if config.z_top_k is None
                else logits.topk(min(config.z_top_k, logits.shape[-1])).values
            )
            sums["z"] = top.logsumexp(dim=-1).square().sum()
    return sums, predictions


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Sum of the cross-entropy over positions; smoothing is spread evenly over classes not masked."""
    if logits.shape[0] == 0:
        return logits.sum()
    if smoothing == 0.0:
        return F.cross_entropy(logits, labels, reduction="sum")
    allowed = logits > torch.finfo(logits.dtype).min
    log_probabilities = logits.log_softmax(dim=-1)
    target = -log_probabilities.gather(-1, labels[:, None])[:, 0]
    even = -(log_probabilities.masked_fill(~allowed, 0.0).sum(dim=-1) / allowed.sum(dim=-1))
    return ((1 - smoothing) * target + smoothing * even).sum()


def _slice(inputs: LossInputs, start: int, stop: int) -> LossInputs:
    return LossInputs(
        inputs.hidden[start:stop],
        inputs.head,
        inputs.pointer_logits[start:stop],
        inputs.labels[start:stop],
        None if inputs.gate is None else inputs.gate[start:stop],
    )


def _counts(labels: Tensor, pointer_start: int, sums: dict[str, Tensor]) -> dict[str, int]:
    pointers = int((labels >= pointer_start).sum())
    every = {"joint": len(labels), "z": len(labels), "text": len(labels) - pointers, "pointer": pointers}
    return {name: every[name] for name in sums}
