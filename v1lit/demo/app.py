"""The page as an application, for any ASGI server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import gradio as gr
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from v1lit.demo.examples import Sample
from v1lit.demo.limits import DemoLimits
from v1lit.demo.page import Page
from v1lit.demo.style import PAGE_STYLE
from v1lit.inference.predictor import Predictor

POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; base-uri 'self'; form-action 'self'"
"""What a browser may load for the page: nothing of other hosts. Gradio needs the rest."""


class OwnHostOnly:
    """Adds the `POLICY` to every answer of an application.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["content-security-policy"] = POLICY
            await send(message)

        await self.app(scope, receive, send_with_policy)


def make_app(
    predictors: Mapping[str, Predictor],
    limits: DemoLimits | None = None,
    samples: Sequence[Sample] = (),
    hosts: Sequence[str] = ("*",),
) -> FastAPI:
    """The application.

    Args:
        predictors: by name; one, or two side by side.
        limits: of a question.
        samples: to choose from.
        hosts: names under which the server may be addressed: a page of elsewhere whose name leads to this
            machine is refused.
    """
    limits = limits or DemoLimits()
    app = FastAPI(
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)),
            Middleware(OwnHostOnly),
        ],
        openapi_url=None,
    )
    fonts = ["system-ui", "sans-serif"]
    return gr.mount_gradio_app(
        app,
        Page(predictors, limits, samples).blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=True,
        max_file_size=limits.upload_mb * 2**20,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Default(primary_hue="teal", font=fonts, font_mono=["ui-monospace", "monospace"]),
        css=PAGE_STYLE,
    )
