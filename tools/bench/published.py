"""The published way to compute the loss of a training step, as a baseline.

Written from the formulas of arXiv 2505.18842, plainly: a padded batch, the logits of every token over the
whole vocabulary and over every image token of its row, in float32 and side by side, then the cross-entropy
and the z-loss over all positions. It takes the weights, and the vision tower, of a `PointAndCopyModel`, so
whatever differs in time or memory lies behind the decoder.
"""

from __future__ import annotations

import math

import torch
from published_loss import joint_loss
from torch import Tensor

from v1lit.pointer.model import PointAndCopyModel


def published_loss(
    model: PointAndCopyModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    image_inputs: dict[str, Tensor],
    z_weight: float = 1e-5,
    z_top_k: int = 40,
) -> Tensor:
    """The loss, `[]`. input_ids, attention_mask and labels: `[batch, tokens]`; labels are not shifted."""
    is_image = input_ids == model.config.image_token_id
    features = model.family.encode_images(model.backbone, **image_inputs)
    images = pad_rows(features, is_image)
    embeddings = embed(model, input_ids, is_image, features, images)
    plain_ids = input_ids.masked_fill(input_ids >= model.config.pointer_start, 0)
    states = model.backbone.get_decoder()(
        inputs_embeds=embeddings,
        attention_mask=attention_mask,
        position_ids=model.family.positions(model.backbone, plain_ids, attention_mask, **image_inputs),
        use_cache=False,
    ).last_hidden_state
    logits = all_logits(model, states, is_image)
    return joint_loss(logits, labels, z_weight, z_top_k)


def pad_rows(flat: Tensor, is_image: Tensor) -> Tensor:
    """`[image_tokens, width]` of all rows -> `[batch, most image tokens, width]`, zeros behind the last."""
    counts = is_image.sum(dim=1)
    padded = flat.new_zeros(len(counts), int(counts.max()), flat.shape[-1])
    for row, part in enumerate(flat.split(counts.tolist())):
        padded[row, : len(part)] = part
    return padded


def embed(
    model: PointAndCopyModel, input_ids: Tensor, is_image: Tensor, features: Tensor, images: Tensor
) -> Tensor:
    """Text is looked up, image tokens get their features, pointers a copy; `[batch, tokens, hidden]`."""
    is_pointer = input_ids >= model.config.pointer_start
    text = model.get_input_embeddings()(input_ids.masked_fill(is_pointer, 0))
    embeddings = text.masked_scatter(is_image[..., None], features)
    index = (input_ids - model.config.pointer_start).clamp(min=0)
    copies = images.gather(1, index[..., None].expand(-1, -1, images.shape[-1]))
    return torch.where(is_pointer[..., None], copies, embeddings)


def all_logits(model: PointAndCopyModel, states: Tensor, is_image: Tensor) -> Tensor:
    """float32 `[batch, tokens, V + pointers]`, the lowest float where a row has no such image token."""
    vocabulary = model.get_output_embeddings()(states).float()
    head = model.pointer_head
    keys = head.project_keys(pad_rows(states[is_image], is_image))
    scores = (head.project_queries(states) @ keys.transpose(1, 2)).float() / math.sqrt(states.shape[-1])
    present = torch.arange(keys.shape[1], device=keys.device) < is_image.sum(dim=1, keepdim=True)
    scores = scores.masked_fill(~present[:, None, :], torch.finfo(scores.dtype).min)
    return torch.cat([vocabulary[..., : model.config.pointer_start], scores], dim=-1)
