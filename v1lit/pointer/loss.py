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
    counts: dict[str, float]
    """Positions behind each sum, or the sum of their weights."""
    predictions: Tensor
    """Most likely class at every position, `[positions]`; detached."""

    def total(self, z_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise and its parts, means over positions; the z part already has its weight."""
        parts = {name: value / (self.counts[name] or 1) for name, value in self.sums.items()}
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
    gate: Tensor | None = None
    """g of every position, `[positions, 1]`, or None."""
    weights: Tensor | None = None
    """Weight of every position's cross-entropy, `[positions]`; None for all alike. The z-loss has none."""


def pointer_loss(inputs: LossInputs, pointer_start: int, config: PointerConfig) -> LossTerms:
    """The loss, never holding `[positions, vocabulary]`: chunks are recomputed in the backward pass."""
    totals: dict[str, list[Tensor]] = {}
    predictions = []
    for start in range(0, inputs.labels.shape[0], config.loss_chunk):
        part = _slice(inputs, start, start + config.loss_chunk)
        sums, predicted = checkpoint(_chunk, part, pointer_start, config, use_reentrant=False)
        for name, value in sums.items():
            totals.setdefault(name, []).append(value)
        predictions.append(predicted)
    if not predictions:
        zero = inputs.hidden.sum() * 0.0 + inputs.pointer_logits.sum() * 0.0
        return LossTerms({"joint": zero.float()}, {"joint": 0}, inputs.labels)
    sums = {name: torch.stack(values).sum() for name, values in totals.items()}
    return LossTerms(sums, _counts(inputs, pointer_start, sums), torch.cat(predictions))


def reference_loss(inputs: LossInputs, pointer_start: int, config: PointerConfig) -> LossTerms:
    """The same at once, holding all logits: the specification that the chunked loss is tested against."""
    sums, predictions = _chunk(inputs, pointer_start, config)
    return LossTerms(sums, _counts(inputs, pointer_start, sums), predictions)


def joint_logits(vocabulary: Tensor, pointers: Tensor, gate: Tensor | None, pointer_start: int) -> Tensor:
    """`[vocabulary logits[:V] ; pointer logits]` in float32, each side scaled by the gate, if any."""
    text = vocabulary[..., :pointer_start].float()
    if gate is None:
        return torch.cat([text, pointers], dim=-1)
    masked = pointers <= torch.finfo(pointers.dtype).min
    gated = (gate * pointers).masked_fill(masked, torch.finfo(pointers.dtype).min)
    return torch.cat([(1 - gate) * text, gated], dim=-1)


def _chunk(inputs: LossInputs, pointer_start: int, config: PointerConfig) -> tuple[dict[str, Tensor], Tensor]:
    """Sums of the terms, and the most likely classes, of a few positions."""
    labels, gate, weights = inputs.labels, inputs.gate, inputs.weights
    vocabulary = F.linear(inputs.hidden, inputs.head)
    logits = joint_logits(vocabulary, inputs.pointer_logits, gate, pointer_start)
    predictions = logits.detach().argmax(dim=-1)
    weights = torch.ones_like(labels, dtype=logits.dtype) if weights is None else weights
    smoothing = config.label_smoothing
    if config.loss == "separate":
        text = vocabulary.float() if gate is None else (1 - gate) * vocabulary.float()
        pointer = logits[:, pointer_start:]
        t, p = labels < pointer_start, labels >= pointer_start
        sums = {
            "text": cross_entropy(text[t], labels[t], weights[t], smoothing),
            "pointer": cross_entropy(pointer[p], labels[p] - pointer_start, weights[p], smoothing),
        }
    else:
        sums = {"joint": cross_entropy(logits, labels, weights, smoothing)}
        if config.z_weight > 0:
            top = (
                logits
                if config.z_top_k is None
                else logits.topk(min(config.z_top_k, logits.shape[-1])).values
            )
            sums["z"] = top.logsumexp(dim=-1).square().sum()
    return sums, predictions


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Weighted sum of the cross-entropy over positions; smoothing is spread over the classes not masked."""
    if logits.shape[0] == 0:
        return logits.sum()
    if smoothing == 0.0:
        return (weights * F.cross_entropy(logits, labels, reduction="none")).sum()
    allowed = logits > torch.finfo(logits.dtype).min
    log_probabilities = logits.log_softmax(dim=-1)
    target = -log_probabilities.gather(-1, labels[:, None])[:, 0]
    even = -(log_probabilities.masked_fill(~allowed, 0.0).sum(dim=-1) / allowed.sum(dim=-1))
    return (weights * ((1 - smoothing) * target + smoothing * even)).sum()


def first_pointers(labels: Tensor, pointer_start: int) -> Tensor:
    """True at the first pointer of every run of pointers, `[batch, tokens]` -> the same."""
    is_pointer = labels >= pointer_start
    follows = F.pad(is_pointer[:, :-1], (1, 0))
    return is_pointer & ~follows


def _slice(inputs: LossInputs, start: int, stop: int) -> LossInputs:
    return LossInputs(
        inputs.hidden[start:stop],
        inputs.head,
        inputs.pointer_logits[start:stop],
        inputs.labels[start:stop],
        None if inputs.gate is None else inputs.gate[start:stop],
        None if inputs.weights is None else inputs.weights[start:stop],
    )


def _counts(inputs: LossInputs, pointer_start: int, sums: dict[str, Tensor]) -> dict[str, float]:
    """Positions, or their weights, behind each sum. The z-loss is a plain mean."""
    weights = (
        torch.ones_like(inputs.labels, dtype=torch.float32) if inputs.weights is None else inputs.weights
    )
    pointers = float(weights[inputs.labels >= pointer_start].sum())
    total = float(weights.sum())
    every = {"joint": total, "z": float(len(weights)), "text": total - pointers, "pointer": pointers}
    return {name: every[name] for name in sums}
