"""The demo page of tiny models in a thread, and a browser that finds no other host than this one."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from v1lit.demo.limits import DemoLimits
from v1lit.inference.predictor import Predictor

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
CLEAR = "#picture [aria-label='Remove Image']"
HARMLESS = ("Method not implemented.",)
"""What gradio itself writes on the console of every page."""


@dataclass
class Shown:
    """A server of the page."""

    url: str
    outward: list[str] = field(default_factory=list)
    """Hosts that the server's process asked for, this machine left out."""


@contextmanager
def showing(
    predictors: Mapping[str, Predictor], folder: str, limits: DemoLimits, samples: Any
) -> Iterator[Shown]:
    """Serve the page in a thread of this process, its files in `folder`."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
    os.environ["GRADIO_TEMP_DIR"] = folder
    from v1lit.demo.app import make_app
    from v1lit.demo.server import page_server

    shown = Shown("")
    look_up = socket.getaddrinfo

    def only_here(host: Any, *args: Any, **options: Any) -> Any:
        if host not in ("127.0.0.1", "localhost", None):
            shown.outward.append(str(host))
            raise socket.gaierror(f"refused: {host}")
        return look_up(host, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", only_here)
        app = make_app(predictors, limits, samples, ["127.0.0.1"])
        server = page_server(app, "127.0.0.1", 0)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            shown.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
            yield shown
        finally:
            server.should_exit = True
            thread.join(timeout=60)


@contextmanager
def browsing() -> Iterator[Any]:
    """A headless Chromium of this machine; every host but this machine has no address for it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no browser")
    refuse = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", refuse])
        yield browser
        browser.close()


class Visit:
    """One visitor's page, and what it asked for and complained of.

    Args:
        browser: of `browsing`.
        url: of the page.
        **options: of the visitor: size of the screen, light or dark.
    """

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        options.setdefault("viewport", {"width": 1280, "height": 900})
        self.context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)
        self.page.goto(url)
        self.page.wait_for_selector("#ask")

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning") and message.text not in HARMLESS:
            self.complaints.append(message.text)

    def put(self, path: Any) -> None:
        """Choose a file as the picture, in place of the one that is there."""
        self.clear()
        field = self.page.locator("#picture input[type=file]")
        if not field.count():  # the last one was pasted
            self.page.locator("#picture [aria-label='Upload file']").click()
        field.set_input_files(path)

    def clear(self) -> None:
        """Take the picture away, if there is one."""
        button = self.page.locator(CLEAR).first
        if button.is_visible():
            button.click()
            button.wait_for(state="hidden")

    def set(self, control: str, value: str) -> None:
        """Write into a control, opening what hides it."""
        field = self.page.locator(f"#{control} textarea, #{control} input").first
        if not field.is_visible():
            for group in ("Sampling", "Steering"):
                self.page.get_by_text(group, exact=True).click()
        field.fill(value)
        field.blur()

    def ask(self, question: str | None = None, panel: int = 1) -> str:
        """Ask and wait for the whole answer; returns what is said about it below."""
        if question is not None:
            self.page.locator("#question textarea").fill(question)
        self.page.locator("#ask:not([disabled])").click()
        self.page.locator("#stop:not([disabled])").wait_for()
        self.page.locator("#ask:not([disabled])").wait_for()
        return self.text(f"#answer-{panel} .status")

    def text(self, selector: str) -> str:
        """What stands there."""
        return str(self.page.locator(selector).first.inner_text())

    def told(self) -> str:
        """The next message, which is then put away."""
        message = self.page.locator(".toast-body").first
        text = str(message.inner_text())
        message.locator("button").first.click()
        message.wait_for(state="detached")
        return text

    def lit(self, selector: str) -> list[str]:
        """What lights up of a kind, by its number."""
        script = "found => found.map(one => one.dataset.patch ?? one.dataset.look)"
        return list(self.page.locator(f"#answer-1 {selector}.lit").evaluate_all(script))

    def close(self) -> None:
        """The visitor leaves."""
        self.context.close()
