"""The model made of parts: a vision tower of timm, a projector, a causal language model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedModel,
)

from v1lit.backbones.timm_config import TimmLMConfig
from v1lit.backbones.timm_projectors import Attend, make_projector
from v1lit.backbones.timm_tower import create_tower, run_tower


class TimmForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A language model that reads what a projector makes of a timm tower's features.

    Its three parts are `vision_tower`, `projector` and `language_model`, with the names of weights that timm
    and transformers give them.
    """

    config_class = TimmLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")  # type: ignore[assignment]  # any sequence of names will do
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: TimmLMConfig) -> None:
        super().__init__(config)
        facts = config.tower_facts
        self.naflex, self.norm = facts.naflex, facts.norm
        self.vision_tower = create_tower(config.tower_spec)
        if config.initializer_range is not None:
            draw_tower(self.vision_tower, config.initializer_range)
        self.projector = make_projector(config.projector_spec)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # timm draws the tower's weights itself; what it computes beside them is computed again where a
        # checkpoint is loaded.
        compute = getattr(module, "init_non_persistent_buffers", None)
        if compute is not None:
            compute()
        elif module is self.projector:
            init_projector(module, float(getattr(self.config.get_text_config(), "initializer_range", 0.02)))

    def get_input_embeddings(self) -> nn.Module:
        table: nn.Module = self.language_model.get_input_embeddings()
        return table

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.language_model.get_output_embeddings()
        return head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        decoder: nn.Module = self.language_model.get_decoder()
        return decoder

    def image_features(self, pixel_values: Tensor, image_grid_hw: Tensor) -> Tensor:
        """Embeddings of all image tokens of a batch, `[image_tokens, hidden]`, images in order.

        Args:
            pixel_values: `[images, 3, height, width]`; of a NaFlex tower the patches of all images,
                `[patches, pixels of a patch x 3]`, cell by cell.
            image_grid_hw: `[images, 2]`, rows and columns of patches.
        """
        scale = self.config.cell
        pixel_values = pixel_values.to(next(self.vision_tower.parameters()).dtype)
        if self.naflex:
            features, counts = self._ragged(pixel_values, image_grid_hw.tolist(), scale)
        else:
            maps = run_tower(self.vision_tower, pixel_values, self.config.feature_layers, self.norm)
            counts = [maps.shape[-2] * maps.shape[-1]] * len(maps)
            features = by_cells(maps, scale).flatten(0, 1)
        projected: Tensor = self.projector(features, counts)
        return projected

    def _ragged(
        self, pixels: Tensor, grids: Sequence[Sequence[int]], scale: int
    ) -> tuple[Tensor, Sequence[int]]:
        """Features of patches of images of any aspect, `[patches, channels]`, and how many each image has."""
        counts = [rows * columns for rows, columns in grids]
        longest, device = max(counts), pixels.device
        # Copied once: where a patch lies in its image, and in the padded batch.
        where = [patch_places(rows, columns, scale) for rows, columns in grids]
        flat = torch.cat([places + image * longest for image, places in enumerate(map(torch.arange, counts))])
        coordinates = torch.zeros(len(grids) * longest, 2, dtype=torch.long)
        coordinates[flat] = torch.cat(where)
        valid = torch.zeros(len(grids) * longest, dtype=torch.bool)
        valid[flat] = True
        flat = flat.to(device)
        patches = pixels.new_zeros(len(grids) * longest, pixels.shape[1]).index_copy(0, flat, pixels)
        shape = (len(grids), longest)
        batch = {
            "patches": patches.unflatten(0, shape),
            "patch_coord": coordinates.unflatten(0, shape).to(device),
            "patch_valid": valid.unflatten(0, shape).to(device),
        }
        features = run_tower(self.vision_tower, batch, self.config.feature_layers, self.norm)
        return features.flatten(0, 1).index_select(0, flat), counts

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """What the language model returns, with image tokens' embeddings at their placeholders.

        Args:
            input_ids: `[batch, tokens]`; `image_token_id` stands once for every image token.
            attention_mask: `[batch, tokens]`.
            pixel_values: as in `image_features`, of all images of the batch in order.
            image_grid_hw: as in `image_features`.
            inputs_embeds: `[batch, tokens, hidden]`, in place of ids.
            **inputs: of the language model, such as `labels` and a cache.

        Raises ValueError if there are not as many placeholders as image tokens.
        """
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.get_input_embeddings()(input_ids)
            if pixel_values is not None and image_grid_hw is not None:
                features = self.image_features(pixel_values, image_grid_hw).to(inputs_embeds.dtype)
                places = input_ids == self.config.image_token_id
                if int(places.sum()) != len(features):
                    raise ValueError(f"{int(places.sum())} placeholders for {len(features)} image tokens")
                inputs_embeds = inputs_embeds.masked_scatter(places[..., None], features)
        return self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **inputs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Images enter with the prompt only; after that the cache has them. As stock families do it."""
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            prepared |= {"pixel_values": pixel_values, "image_grid_hw": image_grid_hw}
        return prepared


@torch.no_grad()
def draw_tower(tower: nn.Module, std: float) -> None:
    """Draw a tower's products and what it adds to patches, such as positions, with this deviation."""
    embeds = [weight for name, weight in tower.named_parameters(recurse=False) if weight.ndim > 1]
    for module in tower.modules():
        cuts = isinstance(module, nn.Conv2d) and module.kernel_size == module.stride
        if isinstance(module, nn.Linear) or cuts:
            embeds.append(module.get_parameter("weight"))
    for weight in embeds:
        nn.init.normal_(weight, std=std)


def init_projector(projector: nn.Module, std: float) -> None:
    """Draw the matrices of a projector with this standard deviation; biases are zero."""
    for part in projector.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            nn.init.zeros_(part.bias)
        if isinstance(part, Attend):
            nn.init.normal_(part.queries, std=std)


def by_cells(maps: Tensor, scale: int) -> Tensor:
    """`[images, channels, rows, columns] -> [images, patches, channels]`, cell by cell."""
    cells = maps.unflatten(3, (-1, scale)).unflatten(2, (-1, scale))
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(1, 4)


def patch_places(rows: int, columns: int, scale: int) -> Tensor:
    """Row and column of every patch of an image, `[patches, 2]`, cell by cell of `scale` x `scale`."""
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).reshape(rows, columns, 2)
    return by_cells(grid.permute(2, 0, 1)[None], scale)[0]


AutoConfig.register("timm_lm", TimmLMConfig, exist_ok=True)
AutoModelForImageTextToText.register(TimmLMConfig, TimmForConditionalGeneration, exist_ok=True)
