"""What one model says on the page: its answer, its heat maps, and files to take away."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from v1lit.demo.heat import Steps
from v1lit.demo.style import ANSWER_STYLE, HEAT_STYLE
from v1lit.inference.page_parts import LINKING, PageContent, data_url, escape, sections
from v1lit.inference.prediction import Prediction
from v1lit.inference.predictor import Predictor
from v1lit.inference.prompt import open_picture

SIDE = 768
"""Longer side of images on the page, in pixels at most."""
HINT, WAITING = "What {} says, and where it looks, comes here.", "{} has not begun yet …"
QUIETLY: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Of an event: gradio draws nothing over what it changes, and offers it to no program."""
Updates = Mapping[Any, Any]
"""Components and what becomes of them."""


class Panel:
    """The place of one model. Made inside of a page.

    Args:
        name: of the model, for readers.
        number: of the panel, for names of files and of elements.
        predictor: the model.
    """

    def __init__(self, name: str, number: int, predictor: Predictor) -> None:
        self.name, self.number, self.predictor = name, number, predictor
        linking = f"{LINKING}\nlinkUp(element);"
        gr.HTML(f"<h2>{escape(name)}</h2>")
        self.answer = gr.HTML(
            f'<p class="hint">{escape(HINT.format(name))}</p>',
            js_on_load=linking,
            css_template=ANSWER_STYLE,
            apply_default_css=False,
            elem_id=f"answer-{number}",
        )
        with gr.Row():
            kinds = {"json": "JSON", "html": "HTML page", "png": "Picture"}
            self.downloads = {
                kind: gr.DownloadButton(
                    label, interactive=False, size="sm", min_width=80, elem_id=f"{kind}-{number}"
                )
                for kind, label in kinds.items()
            }
        with gr.Accordion("Where every token would have pointed", open=True, visible=False) as self.heat:
            self.slider = gr.Slider(
                1, 2, 1, step=1, label="Token", elem_id=f"step-{number}", interactive=True
            )
            self.map = gr.HTML(css_template=HEAT_STYLE, apply_default_css=False, elem_id=f"heat-{number}")
        self.steps = gr.State(None, time_to_live=3600)
        inputs = [self.steps, self.slider]
        self.slider.change(_render, inputs, self.map, queue=False, trigger_mode="always_last", **QUIETLY)

    @property
    def components(self) -> list[Any]:
        """All that an answer changes."""
        return [self.answer, *self.downloads.values(), self.heat, self.slider, self.map, self.steps]

    def empty(self) -> Updates:
        """Before anything is asked."""
        return self._hint(HINT)

    def waiting(self) -> Updates:
        """Before an answer."""
        return self._hint(WAITING)

    def _hint(self, text: str) -> Updates:
        off = {button: gr.update(value=None, interactive=False) for button in self.downloads.values()}
        hint = f'<p class="hint">{escape(text.format(self.name))}</p>'
        return {self.answer: hint, self.heat: gr.update(visible=False), self.steps: None, **off}

    def unfinished(self, prediction: Prediction, picture: str) -> Updates:
        """An answer as far as it is written; `picture` is that of its image as a `data_url`."""
        return {self.answer: _parts(_content(prediction, picture), "writing …")}

    def finished(self, prediction: Prediction, picture: str, ended: str | None) -> Updates:
        """A whole answer; `ended` says why it breaks off, if it does."""
        content = _content(prediction, picture)
        updates: dict[Any, Any] = {self.answer: _parts(content, _told(prediction, ended))}
        for kind, data in _files(prediction).items():
            path = save_bytes_to_cache(data, f"prediction-{self.number}.{kind}", self.answer.GRADIO_CACHE)
            updates[self.downloads[kind]] = gr.update(value=path, interactive=True)
        if prediction.distributions is None or not len(prediction.distributions):
            return updates
        pieces = [self.predictor.processor.decode([token]) for token in prediction.ids]
        steps = Steps(content, pieces, prediction.distributions)
        first = next((at for at, token in enumerate(prediction.ids, 1) if self._points(token)), 1)
        return {
            **updates,
            self.steps: steps,
            self.heat: gr.update(visible=True),
            self.slider: gr.update(maximum=max(len(steps), 2), value=first),
            self.map: steps.render(first),
        }

    def _points(self, token: int) -> bool:
        return token >= self.predictor.processor.pointer_start


def shown_picture(prediction: Prediction) -> str:
    """The image of a prediction as the page shows it."""
    return data_url(open_picture(prediction.pictures[0]), SIDE)


def _render(steps: Steps | None, step: float) -> str:
    return "" if steps is None else steps.render(int(step))


def _content(prediction: Prediction, picture: str) -> PageContent:
    return PageContent(
        prediction.question,
        prediction.text,
        prediction.answer,
        prediction.looks,
        prediction.patch_maps,
        [picture],
    )


def _parts(content: PageContent, status: str) -> str:
    return f'<div class="parts">{sections(content)}</div><p class="status" role="status">{escape(status)}</p>'


def _told(prediction: Prediction, ended: str | None) -> str:
    counts, seconds = prediction.counts, prediction.seconds
    assert counts is not None
    assert seconds is not None
    took = seconds.prepare + seconds.prefill + seconds.decode
    prompt = f"a prompt of {counts.prompt}, {counts.image} of the image"
    told = f"{counts.generated} tokens behind {prompt}; {took:.1f} s"
    return told if ended is None else f"{told}; {ended}"


def _files(prediction: Prediction) -> dict[str, bytes]:
    picture = io.BytesIO()
    prediction.draw().save(picture, "PNG")
    told = json.dumps(prediction.to_json(), ensure_ascii=False, indent=2)
    return {
        "json": told.encode(errors="replace"),
        "html": prediction.to_html().encode(),
        "png": picture.getvalue(),
    }
