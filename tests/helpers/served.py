"""A tiny model that is served in a thread, and what its clients send."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from v1lit.serving.engine import Engine, EngineLimits
from v1lit.serving.limits import ServerLimits
from v1lit.testing.models import noise, prefers_pointing, processor

FAMILY = "qwen2_5_vl"
NAME = "tiny"


class Served:
    """A server in a thread of this process."""

    def __init__(self, server: Any, engine: Engine, key: str | None) -> None:
        self.server, self.engine, self.key = server, engine, key
        self.port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> Any:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, **options)


@contextmanager
def serving(
    limits: ServerLimits | None = None, engine_limits: EngineLimits | None = None, key: str | None = None
) -> Iterator[Served]:
    import uvicorn

    from v1lit.serving.app import make_app

    engine = Engine(prefers_pointing(FAMILY), processor(FAMILY), engine_limits)
    app = make_app(engine, NAME, limits, key, closing_seconds=5)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Served(server, engine, key)
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


def picture(size: tuple[int, int] = (84, 56), seed: int = 0) -> dict[str, Any]:
    """A part of a message that shows an image of noise."""
    out = io.BytesIO()
    noise(size, seed).save(out, "PNG")
    data = base64.b64encode(out.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def question(words: str = "Where is it?", *parts: dict[str, Any]) -> list[dict[str, Any]]:
    """A conversation of one question."""
    return [{"role": "user", "content": [*parts, {"type": "text", "text": words}]}]
