"""Images of requests: what they may be, and which addresses are never asked."""

from __future__ import annotations

import base64
import io
import socket
import zlib
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

import pytest
from PIL import Image

from v1lit.serving import pictures
from v1lit.serving.asking import AskError
from v1lit.serving.limits import ServerLimits
from v1lit.serving.pictures import open_images, public_addresses

LIMITS = ServerLimits(pixels=10_000)


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def png(size: tuple[int, int], color: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()


def bomb() -> bytes:
    """A small PNG that says it has 900 million pixels."""
    head = (30_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def test_a_data_url_is_the_image() -> None:
    (image,) = open_images((url(png((20, 10))),), LIMITS)
    assert (image.size, image.getpixel((3, 3))) == ((20, 10), (255, 0, 0))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (url(b"no image"), "image 1: "),
        (url(bomb()), "image 1: "),
        (url(png((200, 200))), "image 1: "),
        ("data:text/html;base64,AAAA", "image 1: a data URL begins with"),
        ("data:image/png;base64,*", "image 1: what follows base64, is not base64"),
        ("https://example.org/a.png", "image 1: this server fetches no images"),
        ("file:///etc/passwd", "image 1: this server fetches no images"),
    ],
)
def test_what_is_no_image_is_refused(address: str, said: str) -> None:
    with pytest.raises(AskError) as caught:
        open_images((address,), LIMITS)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1/a.png", "http://localhost/a.png", "http://[::1]/a.png", "http://10.0.0.1/a.png",
        "http://169.254.169.254/latest/meta-data", "http://192.168.1.1/", "http://0.0.0.0/", "http://0x7f000001/",
        "http://[::ffff:127.0.0.1]/", "http://100.64.0.1/", "http://224.0.0.1/", "http://user@127.0.0.1/",
        "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/", "http://[fe80::1]/", "http://[fd00::1]/",
    ],
)  # fmt: skip
def test_private_addresses_are_never_asked(address: str, monkeypatch: Any) -> None:
    def connect(*args: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(AskError, match=r"is not on the public network|there is no host"):
        open_images((address,), ServerLimits(remote_images=True))


def test_a_name_with_one_private_address_among_others_is_refused(monkeypatch: Any) -> None:
    entries = [(2, 1, 6, "", ("93.184.216.34", 80)), (2, 1, 6, "", ("10.1.2.3", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: entries)
    with pytest.raises(AskError, match="not on the public network"):
        public_addresses("example.org", 80, "image 1")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: entries[:1])
    assert public_addresses("example.org", 80, "image 1") == [(2, "93.184.216.34")]


@pytest.mark.parametrize("address", ["ftp://example.org/a.png", "http:///a.png", "javascript:alert(1)", ""])
def test_other_schemes_are_refused(address: str) -> None:
    with pytest.raises(AskError, match="an address begins with"):
        open_images((address,), ServerLimits(remote_images=True))


# ---------------------------------------------------------------- redirects


class Pages(BaseHTTPRequestHandler):
    """What a server on the network may answer; `asked` are the paths that somebody asked for."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        port = self.server.server_address[1]
        leads = {
            "/near": "/picture",
            "/home": f"http://127.0.0.1:{port}/secret",
            "/cloud": "http://169.254.169.254/latest/meta-data",
            "/file": "file:///etc/passwd",
            "/round": "/round",
        }
        body = {"/picture": png((20, 10)), "/large": bytes(200_000)}.get(self.path, b"no picture")
        self.send_response(302 if self.path in leads else 404 if self.path == "/none" else 200)
        if self.path in leads:
            self.send_header("location", leads[self.path])
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        with suppress(OSError):  # who asked has heard enough
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def network() -> Iterator[int]:
    """A server that the name `pictures.test` leads to, as if it were on the public network; its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def public(network: int, monkeypatch: pytest.MonkeyPatch) -> int:
    real = pictures.public_addresses

    def found(host: str, port: int, at: str) -> list[tuple[int, str]]:
        return [(socket.AF_INET, "127.0.0.1")] if host == "pictures.test" else real(host, port, at)

    monkeypatch.setattr(pictures, "public_addresses", found)
    Pages.asked.clear()
    return network


REMOTE = ServerLimits(remote_images=True, body_bytes=100_000)


@pytest.mark.parametrize("path", ["/picture", "/near"])
def test_a_picture_on_the_network_is_fetched_where_that_is_allowed(path: str, public: int) -> None:
    (image,) = open_images((f"http://pictures.test:{public}{path}",), REMOTE)
    assert image.size == (20, 10)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/home", "image 1: 127.0.0.1 is not on the public network"),
        ("/cloud", "image 1: 169.254.169.254 is not on the public network"),
        ("/file", "image 1: an address begins with"),
        ("/round", "image 1: the address leads on more than 3 times"),
        ("/large", "image 1: it has more than 100000 bytes"),
        ("/none", "image 1: its server answers 404"),
        ("/words", "image 1: "),
    ],
)
def test_where_an_address_leads_is_looked_at_like_the_address(path: str, said: str, public: int) -> None:
    with pytest.raises(AskError) as caught:
        open_images((f"http://pictures.test:{public}{path}",), REMOTE)
    assert str(caught.value).startswith(said)
    assert set(Pages.asked) == {path}
    assert len(Pages.asked) <= 4


def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "REMOTE_SECONDS", 0.1)
    monkeypatch.setattr(pictures, "public_addresses", lambda *args: [(socket.AF_INET, "127.0.0.1")])
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(AskError, match="image 1: it cannot be fetched"):
        open_images((f"http://pictures.test:{silent.getsockname()[1]}/a.png",), REMOTE)
