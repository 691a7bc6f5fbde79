"""The server of the page."""

from __future__ import annotations

import asyncio
import logging

import uvicorn
from starlette.types import ASGIApp


def page_server(app: ASGIApp, host: str, port: int) -> uvicorn.Server:
    """A server of `app`, to `run`; port 0 is any free one.

    Every open page holds a connection. At the end they are cut, which is not reported as a failure.
    """
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=1
    )
    logging.getLogger("uvicorn.error").addFilter(_is_failure)
    return uvicorn.Server(config)


def _is_failure(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, asyncio.CancelledError) and "graceful shutdown" not in record.getMessage()
