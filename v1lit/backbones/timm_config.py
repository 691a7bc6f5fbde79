"""The `config.json` of a model made of parts: tower, projector and language model."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from v1lit.backbones.image_options import check_positive
from v1lit.backbones.timm_projectors import KINDS, ProjectorSpec
from v1lit.backbones.timm_tower import Tower, TowerFacts, tower_facts
from v1lit.errors import OptionError, name_allowed

CELLS = ("pixel_shuffle", "average_pool", "local_resampler")
"""Projectors that make one token of several patches."""
NO_PLACE = "resampler"
"""The projector whose tokens have no place in the image."""
PACKABLE = ("full_attention", "sliding_attention")
"""Kinds of decoder layers whose states come by attention alone."""


class TimmLMConfig(PreTrainedConfig):
    """Configuration of a `TimmForConditionalGeneration`.

    Args:
        text_config: of the causal language model, with its `model_type`.
        tower: name of an architecture in timm.
        tower_arguments: further arguments of `timm.create_model`, such as `img_size`.
        feature_layers: layers or stages whose features stand side by side; -1 is the last.
        projector: a name in `v1lit.backbones.timm_projectors.KINDS`.
        projector_scale: patches on each side of a token, for the kinds in `CELLS`.
        projector_tokens: of an image, for a resampler.
        image_token_id: of the token that stands once for every image token.
        initializer_range: standard deviation of a fresh tower's matrices; timm's own when not given.

    Raises OptionError for a value that no model can be made of.
    """

    model_type = "timm_lm"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  transformers reads a class attribute

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        tower: str = "",
        tower_arguments: dict[str, Any] | None = None,
        feature_layers: list[int] | None = None,
        projector: str = "mlp",
        projector_scale: int = 2,
        projector_tokens: int = 64,
        image_token_id: int | None = None,
        initializer_range: float | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            values = dict(text_config)
            text_config = AutoConfig.for_model(values.pop("model_type"), **values)
        # The base class would hand its own attention implementation, still None, down to this one.
        self.text_config: Any = None
        super().__init__(**kwargs)
        self.text_config = text_config
        self.tower = tower
        self.tower_arguments = tower_arguments or {}
        self.feature_layers = list(feature_layers or [-1])
        self.projector = projector
        self.projector_scale = check_positive("projector_scale", projector_scale)
        self.projector_tokens = check_positive("projector_tokens", projector_tokens)
        self.image_token_id = image_token_id
        self.initializer_range = initializer_range
        if projector not in KINDS:
            raise OptionError("projector", projector, name_allowed(projector, KINDS))
        if text_config is not None:
            self.tie_word_embeddings = bool(getattr(text_config, "tie_word_embeddings", False))

    @property
    def tower_spec(self) -> Tower:
        """Which tower this is."""
        return Tower.of(self.tower, self.tower_arguments, self.feature_layers)

    @property
    def tower_facts(self) -> TowerFacts:
        """What the tower is, found out once."""
        return tower_facts(self.tower_spec)

    @property
    def projector_spec(self) -> ProjectorSpec:
        """Which projector this is, between these two models."""
        return ProjectorSpec(
            self.projector,
            self.cell,
            self.projector_tokens,
            self.tower_facts.channels,
            self.text_config.hidden_size,
        )

    @property
    def cell(self) -> int:
        """Patches of the tower on each side of an image token."""
        return self.projector_scale if self.projector in CELLS else 1


def check_language(config: Any) -> None:
    """Raise ValueError for a language model whose layers could carry states from one example to the next.

    config: of the text part, or its mapping.
    """
    values = config if isinstance(config, dict) else config.to_dict()
    kinds = sorted(set(values.get("layer_types") or ()).difference(PACKABLE))
    if kinds:
        raise ValueError(
            f"the language model {values.get('model_type')!r} has layers of the kind {kinds[0]!r}, which "
            f"carry states past the end of an example; timm_lm takes those of {' and '.join(PACKABLE)} only"
        )
