"""Images of requests: what they may be, and which addresses are never asked."""

from __future__ import annotations

import base64
import io
import socket
import zlib
from typing import Any

import pytest
from PIL import Image

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
