"""The controls of the page, and what is asked by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from PIL import Image

from v1lit.demo.asking import Ask, read_boxes
from v1lit.demo.limits import DemoLimits
from v1lit.steering import Steering

INSIDE, OUTSIDE = "Look only inside", "Do not look at"


class Controls:
    """How an answer is chosen, and where and when the model may look. Made inside of a page.

    Args:
        limits: of an answer.
    """

    def __init__(self, limits: DemoLimits) -> None:
        self._of: dict[str, Any] = {}
        with gr.Accordion("Sampling", open=False):
            most = limits.new_tokens
            self._add("max_new_tokens", gr.Slider, 1, most, min(256, most), step=1, label="Tokens at most")
            info = "0 takes the most likely token"
            self._add("temperature", gr.Slider, 0, 2, 0, step=0.05, label="Temperature", info=info)
            info = "Only the likeliest tokens that have this probability together"
            self._add("top_p", gr.Slider, 0.05, 1, 1, step=0.05, label="Top p", info=info)
            info = "On words; pointers are spared"
            self._add(
                "repetition_penalty", gr.Slider, 1, 2, 1, step=0.05, label="Repetition penalty", info=info
            )
            self._add("seed", gr.Number, 0, precision=0, minimum=0, label="Seed of samples")
        with gr.Accordion("Steering", open=False):
            self._add_steering()

    def _add_steering(self) -> None:
        boxes = "One box on a line: x1, y1, x2, y2 in pixels of the image"
        self._add("inside", gr.Textbox, "", label=INSIDE, info=boxes, lines=1)
        self._add("outside", gr.Textbox, "", label=OUTSIDE, info=boxes, lines=1)
        self._add("queries", gr.Textbox, "", label="Look for these first", info="One on a line", lines=1)
        for name, label in (
            ("max_looks", "Looks at most"),
            ("max_pointers", "Patches of a look at most"),
            ("look_every", "Tokens between looks at most"),
        ):
            self._add(name, gr.Number, 0, precision=0, minimum=0, label=label, info="0 sets no limit")
        for name, label in (
            ("points", "May point"),
            ("connected", "Patches of a look touch each other"),
            ("distinct", "No patch twice in a look"),
            ("once", "No patch twice at all"),
            ("grammar", "Calls and regions are well formed"),
        ):
            self._add(name, gr.Checkbox, name == "points", label=label, container=False)

    def _add(self, name: str, make: Callable[..., Any], *values: Any, **options: Any) -> None:
        self._of[name] = make(*values, elem_id=name.replace("_", "-"), **options)

    @property
    def components(self) -> set[Any]:
        """All of them."""
        return set(self._of.values())

    def read(self, picture: Image.Image, question: str, values: Mapping[Any, Any]) -> Ask:
        """What is asked, with the value of every control. Raises ValueError for one that cannot be."""
        given = {name: values[control] for name, control in self._of.items()}
        inside = read_boxes(INSIDE, given["inside"])
        rules: dict[str, Any] = {
            **{name: given[name] or None for name in ("max_looks", "max_pointers", "look_every")},
            **{name: given[name] for name in ("points", "connected", "distinct", "once", "grammar")},
        }
        steer = Steering(
            inside=inside or None,
            outside=read_boxes(OUTSIDE, given["outside"]),
            queries=[line.strip() for line in given["queries"].splitlines() if line.strip()],
            **rules,
        )
        return Ask(
            picture,
            question,
            max_new_tokens=int(given["max_new_tokens"]),
            temperature=float(given["temperature"]),
            top_p=float(given["top_p"]),
            repetition_penalty=float(given["repetition_penalty"]),
            seed=int(given["seed"] or 0),
            steer=steer,
        )
