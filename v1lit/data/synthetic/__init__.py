"""Drawn scenes with exact regions, questions and multi-step traces: data that needs no download."""

from v1lit.data.synthetic.generate import make_example, make_scene, make_task_example, synthesize
from v1lit.data.synthetic.looks import LOOKS
from v1lit.data.synthetic.questions import QUESTION_KINDS
from v1lit.data.synthetic.scene import Item, Scene
from v1lit.data.synthetic.tasks import TASKS, read_source

__all__ = [
    "LOOKS",
    "QUESTION_KINDS",
    "TASKS",
    "Item",
    "Scene",
    "make_example",
    "make_scene",
    "make_task_example",
    "read_source",
    "synthesize",
]
