"""The page: a picture and a question on the left, what every model says on the right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from v1lit.demo.asking import Ask, answer, check_ask
from v1lit.demo.controls import Controls
from v1lit.demo.examples import Sample
from v1lit.demo.limits import Deadline, DemoLimits
from v1lit.demo.panel import QUIETLY, Panel, Updates, shown_picture
from v1lit.demo.picture_input import picture_input
from v1lit.errors import one_line
from v1lit.inference.predictor import Predictor


class Page:
    """The page and what its parts do.

    Args:
        predictors: by the name under which readers know them; one, or two side by side.
        limits: of a question.
        samples: to choose from.
    """

    def __init__(
        self, predictors: Mapping[str, Predictor], limits: DemoLimits, samples: Sequence[Sample]
    ) -> None:
        self.limits, self.samples = limits, samples
        self.running: dict[str | None, Deadline] = {}
        """Of the session whose question is being answered: when that ends."""
        with gr.Blocks(title="v1lit", analytics_enabled=False, delete_cache=(600, 3600)) as self.blocks:
            with gr.Row():
                with gr.Column(scale=1, min_width=320):
                    self._inputs()
                with gr.Column(scale=2 * len(predictors), min_width=320):
                    self._panels(predictors)
            self._connect()
        self.blocks.queue(max_size=limits.waiting, default_concurrency_limit=1, api_open=False)

    def _inputs(self) -> None:
        self.picture = picture_input(
            self.limits.pixels,
            label="Picture: upload, drop or paste",
            sources=["upload", "clipboard"],
            format="png",
            height=280,
            elem_id="picture",
            buttons=[],
        )
        self.question = gr.Textbox(
            label="Question",
            placeholder="Where is the red triangle?",
            elem_id="question",
            max_length=self.limits.characters,
            submit_btn=False,
        )
        with gr.Row():
            self.ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=100)
            self.stop = gr.Button("Stop", elem_id="stop", min_width=100, interactive=False)
        self.examples = gr.Dataset(
            components=[gr.Image(visible=False, format="png")],
            samples=[[one.picture] for one in self.samples],
            type="index",
            layout="gallery",
            label="Examples",
            elem_id="examples",
            visible=bool(self.samples),
        )
        self.controls = Controls(self.limits)

    def _panels(self, predictors: Mapping[str, Predictor]) -> None:
        self.panels = []
        with gr.Row():
            for number, (name, predictor) in enumerate(predictors.items(), start=1):
                with gr.Column(min_width=320):
                    self.panels.append(Panel(name, number, predictor))

    def _connect(self) -> None:
        inputs = {self.picture, self.question, *self.controls.components}
        buttons = [self.ask, self.stop]
        outputs = [part for panel in self.panels for part in panel.components]
        triggers = [self.ask.click, self.question.submit]
        asked = gr.on(triggers, self.begin, None, [*buttons, *outputs], queue=False, **QUIETLY)
        told = asked.then(self.run, inputs, outputs, concurrency_limit=1, **QUIETLY)
        told.failure(self.reset, None, [*buttons, *outputs], queue=False, **QUIETLY)
        told.success(self.rest, None, buttons, queue=False, **QUIETLY)
        self.stop.click(self.halt, queue=False, **QUIETLY)
        chosen = [self.picture, self.question]
        self.examples.click(self.choose, self.examples, chosen, queue=False, **QUIETLY)
        # A picture that cannot be used is told at once, and not only when something is asked about it.
        self.picture.upload(lambda picture: None, self.picture, **QUIETLY)

    def begin(self) -> Updates:
        """A question waits for its turn."""
        buttons = {self.ask: gr.update(interactive=False), self.stop: gr.update(interactive=True)}
        return {**buttons, **self._each(Panel.waiting)}

    def reset(self) -> Updates:
        """Nothing came of a question."""
        return {**self.rest(), **self._each(Panel.empty)}

    def rest(self) -> Updates:
        """Nothing is being answered any more."""
        return {self.ask: gr.update(interactive=True), self.stop: gr.update(interactive=False)}

    def _each(self, update: Callable[[Panel], Updates]) -> dict[Any, Any]:
        return {part: value for panel in self.panels for part, value in update(panel).items()}

    def run(self, values: Mapping[Any, Any], request: gr.Request) -> Iterator[Updates]:
        """Ask every model in turn, and show what each says while it says it."""
        try:
            ask = self._read(values)
            self.running[request.session_hash] = deadline = Deadline(self.limits.seconds)
            for panel in self.panels:
                yield from self._answer(panel, ask, deadline)
        except ValueError as error:
            raise gr.Error(one_line(error), print_exception=False) from None
        finally:
            self.running.pop(request.session_hash, None)

    def _answer(self, panel: Panel, ask: Ask, deadline: Deadline) -> Iterator[Updates]:
        picture = ""
        for prediction in answer(panel.predictor, ask, deadline):
            picture = picture or shown_picture(prediction)
            if prediction.seconds is None:
                yield panel.unfinished(prediction, picture)
            else:
                yield panel.finished(prediction, picture, deadline.reason or _cut(prediction.counts, ask))

    def _read(self, values: Mapping[Any, Any]) -> Ask:
        picture: Image.Image | None = values[self.picture]
        if picture is None:
            raise ValueError("there is no picture: upload or paste one, or choose an example")
        ask = self.controls.read(picture, values[self.question] or "", values)
        check_ask(ask, self.limits)
        return ask

    def halt(self, request: gr.Request) -> None:
        """End the answer of whoever asks for it, at its next token."""
        if (deadline := self.running.get(request.session_hash)) is not None:
            deadline.stop()

    def choose(self, index: int) -> tuple[Image.Image, str]:
        """Picture and question of an example."""
        return self.samples[index].picture, self.samples[index].question


def _cut(counts: Any, ask: Ask) -> str | None:
    return "cut off: tokens at most" if counts.generated >= ask.max_new_tokens else None
