"""The server of the page."""

from __future__ import annotations

import asyncio
import logging
from types import FrameType

import uvicorn
from starlette.types import ASGIApp


class PageServer(uvicorn.Server):
    """One that returns from `run` when it is told to end, so that what it leaves can be cleared away."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ctrl-C or SIGTERM ends it; a second one without waiting."""
        self.force_exit = self.should_exit
        self.should_exit = True


def page_server(app: ASGIApp, host: str, port: int) -> PageServer:
    """A server of `app`, to `run`; port 0 is any free one.

    Every open page holds a connection. At the end they are cut, which is not reported as a failure.
    """
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=1
    )
    logging.getLogger("uvicorn.error").addFilter(_is_failure)
    return PageServer(config)


def _is_failure(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, asyncio.CancelledError) and "graceful shutdown" not in record.getMessage()
