"""A web server on localhost that goes wrong on demand.

with FaultyServer() as server:
    server.files["a.tar"] = data
    server.faults["a.tar"] = [reset(after=1000), status(503)]   # One per request, then all is well.
    download(server.url("a.tar"), path)
    assert server.ranges("a.tar") == [None, "bytes=1000-", "bytes=1000-"]
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass(frozen=True)
class Request:
    """What was asked, and the status of the answer (0: none was given)."""

    path: str
    range: str | None
    if_range: str | None
    status: int


class FaultyServer:
    """Serves `files` (path without the leading slash -> content), with ranges and ETags.

    Args:
        handler: answers the requests, where files alone will not do.

    Attributes:
        faults: path -> what happens to the next requests for it.
        always: path -> what happens to all requests for it.
        plain: paths without ETag. no_ranges: paths where a range is answered with the whole file.
        requests: what was asked so far.
        arrived: how many bytes the client has on its disk; resets and short answers wait for those sent.
        released: stalled answers wait until it is set.
    """

    def __init__(self, handler: type[Handler] | None = None) -> None:
        self._handler = handler or Handler
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.always: dict[str, Fault] = {}
        self.plain: set[str] = set()
        self.no_ranges: set[str] = set()
        self.requests: list[Request] = []
        self.arrived: Callable[[], int] = lambda: sys.maxsize
        self.released = threading.Event()
        self.lock = threading.Lock()

    def __enter__(self) -> FaultyServer:
        handler = type("BoundHandler", (self._handler,), {"faulty": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{path}"

    def ranges(self, path: str) -> list[str | None]:
        """The Range headers of all requests for a path, in order."""
        return [request.range for request in self.requests if request.path == path]

    def statuses(self, path: str) -> list[int]:
        return [request.status for request in self.requests if request.path == path]


class Handler(BaseHTTPRequestHandler):
    faulty: FaultyServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.path_name = unquote(self.path.lstrip("/"))
        with self.faulty.lock:
            queue = self.faulty.faults.get(self.path_name)
            fault = queue.pop(0) if queue else self.faulty.always.get(self.path_name, serve)
        fault(self, self.faulty.files.get(self.path_name.partition("?")[0]))

    def do_HEAD(self) -> None:
        self.path_name = unquote(self.path.lstrip("/"))
        self.begin(405, {"Content-Length": "0"})

    def begin(self, code: int, headers: dict[str, str]) -> None:
        self.note(code)
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def note(self, code: int) -> None:
        asked = Request(self.path_name, self.headers.get("Range"), self.headers.get("If-Range"), code)
        with self.faulty.lock:
            self.faulty.requests.append(asked)

    def begin_file(self, data: bytes) -> bytes:
        """Send the headers for a file, or for the range asked for; returns what has to follow."""
        headers = {"ETag": etag(data)} if self.path_name not in self.faulty.plain else {}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None or self.path_name in self.faulty.no_ranges or self._is_other_version(data):
            self.begin(200, {"Content-Length": str(len(data)), **headers})
            return data
        first = int(match[1])
        last = min(int(match[2] or len(data) - 1), len(data) - 1)
        if first > last:
            self.begin(416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0", **headers})
            return b""
        place = f"bytes {first}-{last}/{len(data)}"
        self.begin(206, {"Content-Range": place, "Content-Length": str(last + 1 - first), **headers})
        return data[first : last + 1]

    def _is_other_version(self, data: bytes) -> bool:
        return self.headers.get("If-Range") not in (None, etag(data))

    def reset(self) -> None:
        """End the connection with a reset, in the middle of whatever it is."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def wait_for_client(self, size: int) -> None:
        """An error overtakes the bytes before it: hold it back until the client has `size` on its disk."""
        self.wfile.flush()
        for _ in range(1000):
            if self.faulty.arrived() >= size:
                return
            time.sleep(0.01)

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # The client, or a fault, has closed the connection.
            super().finish()

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


Fault = Callable[[Handler, "bytes | None"], None]


def etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def serve(handler: Handler, data: bytes | None) -> None:
    """No fault at all."""
    if data is None:
        handler.begin(404, {"Content-Length": "0"})
    else:
        handler.wfile.write(handler.begin_file(data))


def status(code: int, **headers: str) -> Fault:
    """An answer without the file."""

    def fault(handler: Handler, _: bytes | None) -> None:
        handler.begin(code, {"Content-Length": "0", **{k.replace("_", "-"): v for k, v in headers.items()}})

    return fault


def redirect(url: str) -> Fault:
    return status(302, Location=url)


def hang_up(handler: Handler, _: bytes | None) -> None:
    """A reset before any answer."""
    handler.note(0)
    handler.reset()


def reset(after: int) -> Fault:
    """A reset after some bytes of the body."""

    def fault(handler: Handler, data: bytes | None) -> None:
        body = handler.begin_file(data or b"")
        handler.wfile.write(body[:after])
        handler.wait_for_client(len(data or b"") - len(body) + after)
        handler.reset()

    return fault


def short(after: int) -> Fault:
    """Fewer bytes than Content-Length says, then a proper end of the connection."""

    def fault(handler: Handler, data: bytes | None) -> None:
        body = handler.begin_file(data or b"")
        handler.wfile.write(body[:after])
        handler.wait_for_client(len(data or b"") - len(body) + after)
        handler.close_connection = True

    return fault


def stall(after: int) -> Fault:
    """Some bytes, then nothing until the server is `released`."""

    def fault(handler: Handler, data: bytes | None) -> None:
        body = handler.begin_file(data or b"")
        handler.wfile.write(body[:after])
        handler.wfile.flush()
        handler.faulty.released.wait()
        handler.wfile.write(body[after:])

    return fault


def other(content: bytes) -> Fault:
    """Another content."""
    return lambda handler, _: serve(handler, content)


def wrong_range(shift: int) -> Fault:
    """A range other than the one asked for."""

    def fault(handler: Handler, data: bytes | None) -> None:
        assert data is not None
        match = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range") or "bytes=0-")
        assert match is not None
        first = max(0, int(match[1]) + shift)
        place = f"bytes {first}-{len(data) - 1}/{len(data)}"
        body = data[first:]
        handler.begin(206, {"Content-Range": place, "Content-Length": str(len(body)), "ETag": etag(data)})
        handler.wfile.write(body)

    return fault


def unplaced(handler: Handler, data: bytes | None) -> None:
    """Status 206 that does not say which bytes follow."""
    assert data is not None
    handler.begin(206, {"Content-Length": str(len(data)), "ETag": etag(data)})
    handler.wfile.write(data)


def chunked(upto: int | None = None) -> Fault:
    """The file in chunks, with no length told; `upto`: cut off after that many bytes."""

    def fault(handler: Handler, data: bytes | None) -> None:
        assert data is not None
        handler.begin(200, {"Transfer-Encoding": "chunked", "ETag": etag(data)})
        for start in range(0, len(data[:upto]), 1000):
            piece = data[start : min(start + 1000, upto or len(data))]
            handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if upto is None:
            handler.wfile.write(b"0\r\n\r\n")
        else:
            handler.close_connection = True

    return fault


def unframed(upto: int | None = None) -> Fault:
    """The file with no length told, up to the end of the connection."""

    def fault(handler: Handler, data: bytes | None) -> None:
        assert data is not None
        handler.begin(200, {"Connection": "close"})
        handler.wfile.write(data[:upto])
        handler.close_connection = True

    return fault


def gzipped(handler: Handler, data: bytes | None) -> None:
    """Compressed, though nobody asked for that."""
    body = gzip.compress(data or b"")
    handler.begin(200, {"Content-Length": str(len(body)), "Content-Encoding": "gzip"})
    handler.wfile.write(body)
