"""Train vision-language models that point.

Names are imported when first used, so `import v1lit` is quick and pulls in neither a trainer nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from v1lit.autos import register_lazily

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from v1lit.backbones.config import BackboneConfig as BackboneConfig
    from v1lit.backbones.registry import get_backbone as get_backbone
    from v1lit.backbones.registry import list_backbones as list_backbones
    from v1lit.backbones.registry import register_backbone as register_backbone
    from v1lit.data.config import EncodingConfig as EncodingConfig
    from v1lit.data.config import SourceConfig as SourceConfig
    from v1lit.data.datamodule import V1DataModule as V1DataModule
    from v1lit.data.example import Example as Example
    from v1lit.data.example import Message as Message
    from v1lit.grounding.patch_map import PatchMap as PatchMap
    from v1lit.grounding.region import Region as Region
    from v1lit.grounding.trace import Trace as Trace
    from v1lit.inference.conversation import Conversation as Conversation
    from v1lit.inference.loading import load as load
    from v1lit.inference.prediction import Prediction as Prediction
    from v1lit.inference.predictor import Predictor as Predictor
    from v1lit.inference.prompt import AboutRegions as AboutRegions
    from v1lit.pointer.config import PointerConfig as PointerConfig
    from v1lit.pointer.model import PointAndCopyModel as PointAndCopyModel
    from v1lit.steering.options import Steering as Steering
    from v1lit.training.config import OptimizerConfig as OptimizerConfig
    from v1lit.training.module import V1Module as V1Module

_MODULES = {
    "AboutRegions": "v1lit.inference.prompt",
    "BackboneConfig": "v1lit.backbones.config",
    "Conversation": "v1lit.inference.conversation",
    "EncodingConfig": "v1lit.data.config",
    "Example": "v1lit.data.example",
    "Message": "v1lit.data.example",
    "OptimizerConfig": "v1lit.training.config",
    "PatchMap": "v1lit.grounding.patch_map",
    "PointAndCopyModel": "v1lit.pointer.model",
    "PointerConfig": "v1lit.pointer.config",
    "Prediction": "v1lit.inference.prediction",
    "Predictor": "v1lit.inference.predictor",
    "Region": "v1lit.grounding.region",
    "SourceConfig": "v1lit.data.config",
    "Steering": "v1lit.steering.options",
    "Trace": "v1lit.grounding.trace",
    "V1DataModule": "v1lit.data.datamodule",
    "V1Module": "v1lit.training.module",
    "get_backbone": "v1lit.backbones.registry",
    "list_backbones": "v1lit.backbones.registry",
    "load": "v1lit.inference.loading",
    "register_backbone": "v1lit.backbones.registry",
}

__all__ = ["__version__", *_MODULES]

register_lazily()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'v1lit' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
