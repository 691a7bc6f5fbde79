"""A hub on this machine: it makes repositories and takes commits, and keeps what they hold."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class FakeHub:
    """What was asked of it."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    """Of the last commit, by path."""
    repositories: list[dict[str, Any]] = field(default_factory=list)
    message: str = ""
    refuses: bool = False


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that answers what the client of huggingface_hub asks when a folder is uploaded."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if hub.refuses:
                self.answer(403, {"error": "you may not write here"})
            elif self.path == "/api/repos/create":
                hub.repositories.append(json.loads(body))
                name = hub.repositories[-1]["name"]
                self.answer(
                    200, {"url": f"{hub.address}/me/{name}", "id": f"me/{name}", "name": f"me/{name}"}
                )
            elif "/preupload/" in self.path:
                asked = json.loads(body)["files"]
                modes = [
                    {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked
                ]
                self.answer(200, {"files": modes})
            elif "/commit/" in self.path:
                self.commit(body)
            else:
                self.answer(200, {})  # what a card holds is checked by the client's library, too

        def do_GET(self) -> None:
            self.answer(404, {"error": "nothing is here yet"})

        def do_HEAD(self) -> None:
            self.do_GET()

        def commit(self, body: bytes) -> None:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "header":
                    hub.message = line["value"]["summary"]
            made = {"success": True, "commitOid": "0" * 40, "hookOutput": ""}
            self.answer(200, {**made, "commitUrl": f"{hub.address}/me/model/commit/0000"})

        def answer(self, status: int, content: dict[str, Any]) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else text)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
