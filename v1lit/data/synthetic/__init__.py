"""Drawn scenes with exact regions, questions and multi-step traces: data that needs no download."""

from v1lit.data.synthetic.generate import LOOKS, make_example, make_scene, synthesize
from v1lit.data.synthetic.questions import QUESTION_KINDS
from v1lit.data.synthetic.scene import Item, Scene

__all__ = ["LOOKS", "QUESTION_KINDS", "Item", "Scene", "make_example", "make_scene", "synthesize"]
