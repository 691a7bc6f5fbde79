"""Plain supervised fine-tuning of the same backbone, without pointers: what a step costs anyway."""

from __future__ import annotations

import torch
from examples import IGNORE, TEXT, Batch
from torch import Tensor
from transformers import PreTrainedModel

from v1lit.backbones.attention import packed_decoder_arguments
from v1lit.backbones.contract import Backbone
from v1lit.backbones.segments import Segments, packed_positions
from v1lit.pointer.joint_loss import LossOptions, pointer_cross_entropy


def without_pointers(ids: Tensor, pointer_start: int) -> Tensor:
    """The same ids with text in place of pointers: as many tokens, and as many to be learned."""
    return torch.where(ids >= pointer_start, TEXT.start + (ids - pointer_start) % len(TEXT), ids)


def plain_loss(
    backbone: PreTrainedModel, family: Backbone, batch: Batch, attention: str, z_weight: float = 1e-5
) -> Tensor:
    """The loss of a stock model on v1lit's flat batch with v1lit's attention and loss kernel, `[]`.

    `batch` holds no pointers; the text config of `backbone` has been through `use_segments`. So the batch,
    the attention, the vision tower and the loss are those of v1lit's own step, and what that step takes
    longer is the price of pointing.
    """
    segments = Segments(batch.lengths, attention)
    positions = packed_positions(family, backbone, batch.flat_ids, segments, **batch.image_inputs)
    weight = backbone.get_output_embeddings().weight
    states = backbone.model(
        input_ids=batch.flat_ids,
        position_ids=positions,
        **batch.image_inputs,
        **packed_decoder_arguments(segments, weight.device, weight.dtype),
    ).last_hidden_state
    owners = segments.owners(batch.flat_ids.device)
    learned = (batch.flat_labels[:, 1:] != IGNORE) & (owners[1:] == owners[:-1])
    targets = batch.flat_labels[:, 1:][learned]
    options = LossOptions(z_weight=z_weight)
    return pointer_cross_entropy(
        states[:, :-1][learned], weight, targets, weight.shape[0], options=options
    ).loss


def stock_loss(backbone: PreTrainedModel, batch: Batch, image_token_id: int) -> Tensor:
    """The loss as transformers computes it when asked for nothing special: padded rows, all logits, `[]`."""
    loss: Tensor = backbone(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        labels=batch.labels,
        mm_token_type_ids=(batch.input_ids == image_token_id).int(),
        use_cache=False,
        **batch.image_inputs,
    ).loss
    return loss
