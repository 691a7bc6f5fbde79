"""What a vision-language model must offer the pointer: one file per family, found through a registry."""

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.registry import get_backbone, list_backbones, register_backbone

__all__ = ["BackboneConfig", "get_backbone", "list_backbones", "register_backbone"]
