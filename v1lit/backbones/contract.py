"""What a vision-language model must offer the pointer: one small contract, one subclass per family.

A `Backbone` is an adapter without parameters around a stock class: it knows where things are in the model,
how a conversation is written, and which pixels every image token sees. Checkpoints keep their layout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from v1lit.backbones.chat import ChatFormat
from v1lit.backbones.classes import named_class
from v1lit.backbones.config import VIEWS
from v1lit.backbones.image_options import (
    PIXEL_OPTIONS,
    ImageProcessor,
    capped,
    capped_size,
    check_image_size,
    check_pixel_options,
    check_positive,
)
from v1lit.backbones.tiny import full_sizes
from v1lit.backbones.work import StateWork, VisionWork
from v1lit.errors import OptionError, explain_unknown, name_allowed
from v1lit.grounding.patch_map import PatchMap, Views
from v1lit.grounding.picture import as_seen
from v1lit.grounding.region import Size

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Backbone(ABC):
    """One family of vision-language models: subclasses fill in class variables and abstract methods."""

    name: str = ""
    """The name under which the family is registered."""
    model_type: ClassVar[str]
    """`model_type` in the checkpoint's `config.json`."""
    model_class: ClassVar[str]
    """Name of the model class in transformers, or `module:name` of another."""
    hub_id: ClassVar[str]
    """A published checkpoint of this family, named in messages."""
    image_inputs: ClassVar[tuple[str, ...]]
    """Names of the image tensors that `encode_images` takes."""
    parts: ClassVar[Mapping[str, tuple[str, ...]]]
    """Paths of `vision`, `projector` and `language` in the transformers model: submodules, or parameters."""
    chat: ClassVar[ChatFormat]
    """The marks around messages and images."""
    processor_class: ClassVar[str]
    """Name of the image processor class in transformers, or `module:name` of another."""
    processor_aliases: ClassVar[tuple[str, ...]] = ()
    """Other names in saved settings for image processors that make the same pixels."""
    image_defaults: ClassVar[Mapping[str, Any]]
    """The published image options that decide which pixels a token sees; also the list of allowed ones."""
    pixel_defaults: ClassVar[Mapping[str, Any]]
    """The published mean and standard deviation."""
    harmless: ClassVar[tuple[str, ...]] = ()
    """Settings of the image processor that change no pixel of this family, beside those of all families."""
    tiny_sizes: ClassVar[Mapping[str, Any]]
    """Sizes of the tiny version and their defaults."""
    packs: ClassVar[bool] = True
    """Whether its decoder can attend inside segments of a packed row; if not, batches are padded."""
    whole_images: ClassVar[bool] = False
    """Whether the tokens of an image see each other in both directions in the decoder.

    Those that stand side by side do then; a pointer is text and sees what is before it.
    """

    # ---- images -------------------------------------------------------------------------------------------

    def patch_map(
        self, image_size: Size, *, views: Views = "all", among: int = 1, **options: Any
    ) -> PatchMap:
        """Which pixels of a `(width, height)` image every image token sees.

        Takes the image processor's options (published values where not given) and needs no model; `among` is
        the number of images that the example has. Raises ValueError for unknown options, sizes that are no
        positive integers, and images that the family's processor refuses.
        """
        if views not in VIEWS:
            raise ValueError(explain_unknown("views", views, VIEWS))
        self.check_image_options(options)
        max_side, full = options.get("max_side"), self.complete(options)
        return self._capped_patch_map(check_image_size(image_size), max_side, full, views, among)

    def complete(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options that decide which pixels a token sees, in canonical form, defaults filled in."""
        own = {key: value for key, value in options.items() if key in self.image_defaults}
        return self.canonical({**self.image_defaults, **own})

    def image_processor(
        self, weights: Literal["tiny"] | None = None, sizes: Mapping[str, Any] | None = None, **options: Any
    ) -> ImageProcessor:
        """The image processor with these options, as in `BackboneConfig.image`, in place of the family's own.

        Args:
            weights: None for the published settings, `tiny` for those of the tiny version.
            sizes: with `tiny`: the sizes that differ from its defaults.
            **options: unknown ones raise ValueError.
        """
        self.check_image_options(options)
        processor = named_class(self.processor_class)(**self.pixel_defaults)
        own = self.tiny_image_options(self.check_sizes(sizes or {})) if weights else {}
        return self.with_options(processor, {**own, **options})

    def with_options(self, processor: Any, options: Mapping[str, Any]) -> ImageProcessor:
        """A transformers image processor that makes the pixels of these image options."""
        canonical = self.complete(options)
        pixels = {key: value for key, value in options.items() if key in PIXEL_OPTIONS}
        arguments = {**self.processor_arguments(canonical), **pixels}
        # Its own settings too, so that it is saved with what it is called with.
        processor = type(processor).from_dict({**processor.to_dict(), **arguments})
        return ImageProcessor(processor, canonical, options.get("max_side"), arguments)

    def preprocess(
        self,
        images: Sequence[Image.Image],
        image_processor: ImageProcessor,
        views: Views = "all",
        among: int | None = None,
    ) -> tuple[dict[str, Tensor], list[PatchMap]]:
        """Tensors for `encode_images`, concatenated over the images, and one patch map per image.

        Images are taken as a person sees them, see `as_seen`; maps are in pixels of that. `among` is the
        number of images of the example, by default of those given; crops of them do not count.
        """
        if not images:
            return {}, []
        among = len(images) if among is None else among
        options, max_side = image_processor.options, image_processor.max_side
        seen = [as_seen(image) for image in images]
        maps = [self._capped_patch_map(image.size, max_side, options, views, among) for image in seen]
        small = [capped(image, max_side) for image in seen]
        return self.pixels(small, image_processor, among), maps

    def pixels(self, images: list[Image.Image], processor: ImageProcessor, among: int) -> dict[str, Tensor]:
        """The tensors of `preprocess`, of at least one image; none is too large."""
        outputs = processor.processor(images=images, return_tensors="pt", **processor.arguments)
        return {name: outputs[name] for name in self.image_inputs}

    def check_image_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options as a dict. Raises ValueError for an unknown one, naming the nearest match."""
        allowed = (*self.image_defaults, *PIXEL_OPTIONS, "max_side")
        for key in options:
            if key not in allowed:
                why = f"{self.name} has no such option; {name_allowed(key, allowed)}"
                raise OptionError(key, options[key], why)
        if options.get("max_side") is not None:
            check_positive("max_side", options["max_side"])
        check_pixel_options(options)
        return dict(options)

    def _capped_patch_map(
        self, image_size: Size, max_side: int | None, options: Mapping[str, Any], views: Views, among: int
    ) -> PatchMap:
        seen = capped_size(image_size, max_side)
        patch_map = (self.grid if among == 1 else self.grid_among)(seen, options, views)
        return patch_map if seen == image_size else patch_map.resized(image_size)

    @abstractmethod
    def canonical(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options with their values checked and every spelling that transformers allows made the same."""

    @abstractmethod
    def grid(self, image_size: Size, options: Mapping[str, Any], views: Views) -> PatchMap:
        """The patch map of an image that reaches the processor with this size, from canonical options."""

    def grid_among(self, image_size: Size, options: Mapping[str, Any], views: Views) -> PatchMap:
        """As `grid`, of one of several images of an example, where a family treats those in another way."""
        return self.grid(image_size, options, views)

    def image_pieces(self, patch_map: PatchMap) -> list[str | int]:
        """What stands in a text for an image: marks and words, and stretches of tokens as their number."""
        before, after = self.chat.image
        return [before, len(patch_map), after]

    @abstractmethod
    def processor_arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Canonical options as arguments of the transformers processor's call."""

    @abstractmethod
    def checkpoint_image_options(self, processor: Any, config: PreTrainedConfig) -> dict[str, Any]:
        """The image options of a checkpoint, from its image processor and its model's config."""

    @abstractmethod
    def tiny_image_options(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """The image options that fit the tiny version."""

    # ---- model --------------------------------------------------------------------------------------------

    def encode_images(self, model: PreTrainedModel, **image_inputs: Tensor) -> Tensor:
        """Embeddings of all image tokens of a batch, `[image_tokens, width]`, images in order.

        They belong where `input_ids == image_token_id`. An image attends to itself only. The width is
        `hidden`, and as much again for each of `deep_layers`.
        """
        import torch

        # Stated by every class of the families, not by their common base.
        encode: Any = model.get_image_features
        features = encode(**image_inputs, return_dict=True).pooler_output
        if not isinstance(features, torch.Tensor):  # but one for each image
            features = torch.cat([of_image.flatten(0, -2) for of_image in features])
        return features.flatten(0, -2)

    def refuse_pointing(self, config: PreTrainedConfig) -> None:
        """Raise ValueError for a model whose image tokens see no part of the image each."""
        return

    def deep_layers(self, config: PreTrainedConfig) -> int:
        """How many vectors an image token has beside its embedding, which enter further decoder layers.

        `encode_images` returns them behind it, and the decoder of a prepared model, whose whole config is
        given, takes them there: `inputs_embeds` `[..., hidden * (1 + deep layers)]`, zeros for text.
        """
        return 0

    @abstractmethod
    def blank_image(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The smallest image that `encode_images` takes, all zeros, on the vision tower's device.

        For a rank or an accumulation step without an image: DDP and FSDP need every parameter in every
        backward pass, so the tower runs on it and nothing of its features enters the loss.
        """

    def positions(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **image_inputs: Tensor,
    ) -> Tensor:
        """Position ids for the decoder's prefill, `[batch, tokens]`; padding has position 0.

        Pointer ids must already be replaced by a text id: a pointer counts as one text token.
        Source: jun297/v1, v1/modeling_v1.py, lines 200-204 and 264-281.
        """
        import torch

        if attention_mask is None:
            row = torch.arange(input_ids.shape[1], device=input_ids.device)
            return row.expand(input_ids.shape[0], -1)
        mask = attention_mask.long()
        return (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)

    @abstractmethod
    def tiny_config(self, tokenizer: PreTrainedTokenizerBase, **sizes: Any) -> PreTrainedConfig:
        """Config of the tiny version, of `tiny_sizes`, for this tokenizer; marks that it lacks are added."""

    def check_sizes(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """All sizes of the tiny version, defaults filled in. Raises OptionError as `full_sizes`."""
        return full_sizes(self.name, self.tiny_sizes, sizes)

    def check_checkpoint(self, config: Mapping[str, Any], weights: str) -> None:
        """Raise ValueError if a `config.json` of the right `model_type` is unusable all the same."""
        architectures = config.get("architectures") or [self.model_class]
        if "auto_map" in config or self.model_class not in architectures:
            raise ValueError(
                f"{weights} is a {architectures[0]}, not the transformers class {self.model_class}; "
                f"use a checkpoint in its layout such as {self.hub_id}"
            )

    @abstractmethod
    def check_fit(self, options: Mapping[str, Any], config: PreTrainedConfig) -> None:
        """Raise ValueError if images made with these canonical options do not fit the model."""

    def explain_foreign(self, config: Mapping[str, Any], weights: str) -> str | None:
        """What `weights` are and what to take instead, where this family knows their foreign `config.json`.

        The recipe's backbone and v1lit's own are asked when `model_type` or class is not the recipe's.
        """
        return None

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """The freshly built or loaded model, changed in ways that keep its results and its state dict."""
        for module in self.unused_modules(model):
            module.requires_grad_(False)
        return model

    def matrices(self, model: PreTrainedModel) -> list[nn.Parameter]:
        """Weights of products beside those of linear layers and convolutions.

        They are counted, and those of a tiny version are drawn: stock classes may leave them at zero.
        """
        return []

    def unused_modules(self, model: PreTrainedModel) -> list[nn.Module]:
        """Parts of the vision tower that no feature depends on: no gradient, and no work that counts."""
        return []

    def layers(self, model: PreTrainedModel, part: str) -> list[nn.Module]:
        """The repeated layers of a part, in order: what is recomputed, compiled, gathered and freed as one.

        All that transformers lets recompute; a family whose layers are others says so here.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        inside = [module for path in self.parts[part] for module in model.get_submodule(path).modules()]
        return [module for module in inside if isinstance(module, GradientCheckpointingLayer)]

    def vision_work(self, config: PreTrainedConfig, image_inputs: Mapping[str, Tensor]) -> VisionWork:
        """What the images of a batch cost the vision tower and the projector, for `train/mfu`.

        Args:
            config: The whole model's.
            image_inputs: As for `encode_images`, but of pixels only the shape; empty without images.

        Raises ValueError where a family states no formula: it is then trained without `train/mfu`.
        """
        raise ValueError(f"no formula for the operations of {self.name}: it does not state vision_work")

    def state_work(self, config: PreTrainedConfig) -> StateWork:
        """What the decoder's layers of linear attention cost, for `train/mfu`; config: the whole model's."""
        return StateWork()


def blank_pixels(tower: nn.Module, *shape: int) -> Tensor:
    """Zeros `[*shape]` on the tower's device and in its type."""
    import torch

    # Not of the weight's class: that of a sharded tower is distributed.
    weight = next(tower.parameters())
    return torch.zeros(shape, dtype=weight.dtype, device=weight.device)
