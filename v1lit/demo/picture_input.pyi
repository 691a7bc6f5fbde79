"""Where a picture is put in: files and the clipboard, with a sentence for what cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from v1lit.data.images import ImageError, decode_image
from v1lit.errors import one_line

from gradio.events import Dependency

class PictureInput(gr.Image):
    """Gradio's image, opened as all images of v1lit are, and with limits.

    Gradio opens a picture before any function is called, and what it cannot open ends in a bare "Error". The
    constructor stays gradio's: by its signature gradio knows what to tell the browser.
    """

    max_pixels = ServerLimits.pixels
    """Of a picture."""

    def get_block_name(self) -> str:
        """The name under which the browser knows it."""
        return "image"

    def preprocess(self, payload: Any) -> Image.Image | None:
        """The picture as a person sees it, RGB. Raises gradio's Error for one that cannot be used."""
        if payload is None or payload.path is None:
            return None
        path = Path(payload.path)  # of an upload: gradio lets no other file through
        try:
            return decode_image(path.read_bytes(), max_pixels=self.max_pixels)
        except ImageError as error:
            name = payload.orig_name or path.name
            raise gr.Error(f"{name}: {one_line(error)}", title="This picture", print_exception=False) from None
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component