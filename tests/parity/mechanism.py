"""The published pointing mechanism once more: one row at a time, no cache, all logits, nothing of `v1lit`.

What `v1lit` computes in batches, packed, cached and fused stands here as described, on the stock backbone.
It is itself compared with what the published implementation computes (`test_mechanism.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

IGNORED = -100


@dataclass(frozen=True)
class Row:
    """One example: ids `[tokens]` with pointers in them, labels alike, and its only image."""

    ids: Tensor
    labels: Tensor
    pixels: Tensor
    """`[patches, values]`."""
    grid: tuple[int, int, int]
    """Frames, rows and columns of patches."""


class Mechanism(nn.Module):
    """A stock backbone and the heads, with the names and the options of the published checkpoints."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        hidden, width = config["hidden_size"], config["copy_hidden_size"]
        backbone = Qwen2_5_VLConfig(**{key: value for key, value in config.items() if key not in OPTIONS})
        backbone._attn_implementation = "eager"
        self.backbone = Qwen2_5_VLForConditionalGeneration(backbone).eval()
        self.query = nn.Linear(hidden, width)
        self.key = self.query if config["tie_copy_heads"] else nn.Linear(hidden, width)
        self.gate = nn.Linear(hidden, 1, bias=False) if config["use_gate"] else None

    # ------------------------------------------------------------------ weights

    def published_parameters(self) -> dict[str, Tensor]:
        """Every weight under its name in a published checkpoint."""
        inner = self.backbone
        parts: dict[str, nn.Module | None] = {
            "model": inner.model.language_model,
            "visual": inner.model.visual,
            "lm_head": inner.lm_head,
            "gate": self.gate,
        }
        if self.key is self.query:
            parts["_copy_head"] = self.query
        else:
            parts |= {"_copy_q_head": self.query, "_copy_k_head": self.key}
        return {
            f"{prefix}.{name}": value
            for prefix, part in parts.items()
            if part is not None
            for name, value in part.named_parameters()
        }

    def load(self, tensors: dict[str, Tensor]) -> Mechanism:
        """Take all weights from `tensors`, which must hold these and no others."""
        own = self.published_parameters()
        assert sorted(own) == sorted(tensors), set(own) ^ set(tensors)
        with torch.no_grad():
            for name, value in own.items():
                assert value.shape == tensors[name].shape, name
                value.copy_(tensors[name])
        return self

    # ------------------------------------------------------------------ what it computes

    def scores(self, row: Row) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `[tokens, vocabulary]` and `[tokens, image tokens]`, ungated, and gate `[tokens, 1]`."""
        config, inner = self.config, self.backbone
        images = row.ids == config["image_token_id"]
        pointers = row.ids >= config["copy_token_start"]
        seen = inner.model.visual(row.pixels, grid_thw=torch.tensor([row.grid])).pooler_output
        inputs = inner.model.language_model.embed_tokens(row.ids.masked_fill(pointers, 0))
        inputs = inputs.masked_scatter(images[:, None], seen)
        # A pointer's embedding is the input embedding of the image token that it points at.
        copied = seen[row.ids[pointers] - config["copy_token_start"]]
        inputs = inputs.masked_scatter(pointers[:, None], copied)
        states = inner.model.language_model(
            inputs_embeds=inputs[None], position_ids=self.positions(row)[:, None], use_cache=False
        ).last_hidden_state[0]
        keys = inputs[images] if config["use_embeddings_as_keys"] else states[images]
        asking = states
        if config["normalize_copy_states"]:
            asking, keys = F.normalize(asking, dim=-1), F.normalize(keys, dim=-1)
        pointing = self.query(asking) @ self.key(keys).T / math.sqrt(config["hidden_size"])
        gate = torch.zeros(len(states), 1) if self.gate is None else torch.sigmoid(self.gate(states))
        return inner.lm_head(states), pointing, gate

    def logits(self, row: Row) -> Tensor:
        """What one softmax is taken over: `[tokens, copy_token_start + image tokens]`."""
        text, pointing, gate = self.scores(row)
        text = text[:, : self.config["copy_token_start"]]
        if self.gate is None:
            return torch.cat([text, pointing], dim=1)
        return torch.cat([(1 - gate) * text, gate * pointing], dim=1)

    def losses(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The published losses over all rows: `loss` and its parts."""
        if self.config["separate_copy_loss"]:
            return self._separate_losses(rows)
        likelihoods, squares = [], []
        for row in rows:
            learned = row.labels[1:] != IGNORED
            logits, labels = self.logits(row)[:-1][learned], row.labels[1:][learned]
            likelihoods.append(F.cross_entropy(logits, labels, reduction="none"))
            top = logits.topk(min(self.config["z_loss_top_k"], logits.shape[1])).values
            squares.append(top.logsumexp(dim=1).square())
        text = torch.cat(likelihoods).mean()
        if not self.config["z_loss_weight"]:
            return {"loss": text, "gen_loss": text}
        z = self.config["z_loss_weight"] * torch.cat(squares).mean()
        return {"loss": text + z, "gen_loss": text, "z_loss": z}

    def _separate_losses(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Text over the whole vocabulary, pointers over pointers, each averaged over its own labels."""
        start = self.config["copy_token_start"]
        of_text, of_pointers = [], []
        for row in rows:
            text, pointing, _ = (side[:-1] for side in self.scores(row))
            labels = row.labels[1:]
            is_text, is_pointer = (labels != IGNORED) & (labels < start), labels >= start
            of_text.append(F.cross_entropy(text[is_text], labels[is_text], reduction="none"))
            of_pointers.append(
                F.cross_entropy(pointing[is_pointer], labels[is_pointer] - start, reduction="none")
            )
        text, pointers = torch.cat(of_text).mean(), torch.cat(of_pointers).mean()
        return {"loss": text + pointers, "gen_loss": text, "copy_loss": pointers}

    @torch.no_grad()
    def continued(self, row: Row, tokens: int) -> tuple[list[int], float]:
        """The likeliest continuation, and by how much its closest decision was taken."""
        ids, closest = row.ids, math.inf
        for _ in range(tokens):
            best = self.logits(Row(ids, ids, row.pixels, row.grid))[-1].topk(2)
            closest = min(closest, float(best.values[0] - best.values[1]))
            ids = torch.cat([ids, best.indices[:1]])
        return ids[len(row.ids) :].tolist(), closest

    def positions(self, row: Row) -> Tensor:
        """Time, row and column of every token, `[3, tokens]`; a pointer counts as one text token."""
        _, high, wide = row.grid
        merge = self.config["vision_config"]["spatial_merge_size"]
        places, following, seen = [], 0, 0
        for token in row.ids.tolist():
            if token != self.config["image_token_id"]:
                places.append((following, following, following))
                following += 1
                continue
            line, column = divmod(seen, wide // merge)
            places.append((following, following + line, following + column))
            seen += 1
            if seen == high * wide // merge**2:
                following += max(high, wide) // merge
        return torch.tensor(places).T


OPTIONS = {
    "architectures",
    "copy_extraction_layer",
    "copy_hidden_size",
    "copy_scaler",
    "copy_token_num",
    "copy_token_start",
    "do_copy",
    "label_smoothing",
    "model_type",
    "normalize_copy_states",
    "region_token_id",
    "separate_copy_loss",
    "tf_legacy_loss",
    "tie_copy_heads",
    "transformers_version",
    "use_cfg",
    "use_embeddings_as_keys",
    "use_gate",
    "z_loss_top_k",
    "z_loss_weight",
    "_attn_implementation_autoset",
    "_name_or_path",
    "torch_dtype",
}
"""Keys of a published config that are not the backbone's."""


def rows_of(tensors: dict[str, Tensor]) -> list[Row]:
    """The rows of a padded batch, without their padding; every row has one image."""
    grids = tensors["image_grid_thw"]
    pixels = tensors["pixel_values"].split(grids.prod(dim=1).tolist())
    rows = []
    for number, length in enumerate(tensors["attention_mask"].sum(dim=1).tolist()):
        ids, labels = (tensors[name][number, :length] for name in ("input_ids", "labels"))
        rows.append(Row(ids, labels, pixels[number], tuple(grids[number].tolist())))
    return rows
