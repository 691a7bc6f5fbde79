"""Where a picture is put in: files and the clipboard, with a sentence for what cannot be used."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image

from v1lit.data.images import ImageError, decode_image
from v1lit.errors import one_line


def picture_input(max_pixels: int, **options: Any) -> gr.Image:
    """Gradio's image, opened as all images of v1lit are, and with a limit on its pixels.

    Gradio opens a picture before any function is called, and what it cannot open ends in a bare "Error". A
    subclass would say so better, but at its definition gradio writes a file beside its source.

    Args:
        max_pixels: of a picture, looked up before it is decoded.
        **options: of `gradio.Image`.
    """
    component = gr.Image(**options)
    component.preprocess = partial(_opened, max_pixels)  # type: ignore[method-assign]
    return component


def _opened(max_pixels: int, payload: ImageData | None) -> Image.Image | None:
    """The picture as a person sees it, RGB. Raises gradio's Error for one that cannot be used."""
    if payload is None or payload.path is None:
        return None
    path = Path(payload.path)  # of an upload: gradio lets no other file through
    try:
        return decode_image(path.read_bytes(), max_pixels=max_pixels)
    except ImageError as error:
        name = payload.orig_name or path.name
        raise gr.Error(f"{name}: {one_line(error)}", print_exception=False) from None
