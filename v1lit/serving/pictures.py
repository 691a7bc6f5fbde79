"""Images of a request: data URLs and, where a server allows it, addresses that are nobody's own network."""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import re
import socket
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from PIL import Image

from v1lit.data.images import ImageError, decode_image
from v1lit.serving.asking import AskError
from v1lit.serving.limits import ServerLimits

REDIRECTS = 3
"""Hops of a remote image at most; each is checked like the first."""
REMOTE_SECONDS = 10.0
"""Time for a remote image, redirects included."""
TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
"""Addresses that end with the IPv4 address which a translator asks (RFC 6052)."""
_DATA = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)


def open_images(addresses: tuple[str, ...], limits: ServerLimits) -> list[Image.Image]:
    """The images as a person sees them. Raises AskError for the first one that cannot be used."""
    images = []
    for number, address in enumerate(addresses):
        at = f"image {number + 1}"
        data = _decoded(address, at) if address.startswith("data:") else _fetched(address, at, limits)
        try:
            images.append(decode_image(data, max_pixels=limits.pixels))
        except ImageError as error:
            raise AskError(at, str(error)) from None
    return images


def _decoded(address: str, at: str) -> bytes:
    head = _DATA.match(address)
    if head is None:
        raise AskError(at, "a data URL begins with data:image/png;base64, or that of another kind of image")
    try:
        return base64.b64decode(address[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise AskError(at, "what follows base64, is not base64") from None


def _fetched(address: str, at: str, limits: ServerLimits) -> bytes:
    if not limits.remote_images:
        raise AskError(at, "this server fetches no images; send it as a data URL (data:image/png;base64,...)")
    try:
        return asyncio.run(_get(address, at, limits))
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        if isinstance(error, AskError):
            raise
        raise AskError(at, f"it cannot be fetched ({type(error).__name__})") from None


async def _get(address: str, at: str, limits: ServerLimits) -> bytes:
    """The content of an address, and of where it leads; every host on the way is looked at."""
    connector = aiohttp.TCPConnector(resolver=PublicHosts(at))
    timeout = aiohttp.ClientTimeout(total=REMOTE_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
        for _ in range(REDIRECTS + 1):
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise AskError(at, "an address begins with https:// or http://")
            public_addresses(parts.hostname, parts.port or 80, at)  # numbers are not resolved
            async with session.get(address, allow_redirects=False) as answer:
                if answer.status in (301, 302, 303, 307, 308) and "location" in answer.headers:
                    address = urljoin(address, answer.headers["location"])
                    continue
                if answer.status != 200:
                    raise AskError(at, f"its server answers {answer.status}")
                content = bytearray()
                async for piece in answer.content.iter_any():
                    content += piece
                    if len(content) > limits.body_bytes:
                        raise AskError(at, f"it has more than {limits.body_bytes} bytes")
                return bytes(content)
    raise AskError(at, f"the address leads on more than {REDIRECTS} times")


class PublicHosts(AbstractResolver):
    """Resolves names to what was looked at: whatever a name means a moment later, no other address is asked.

    Args:
        at: which image, for messages.
    """

    def __init__(self, at: str) -> None:
        self.at = at

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
        """The addresses of a host. Raises AskError where one of them is not public."""
        return [
            ResolveResult(hostname=host, host=own, port=port, family=kind, proto=0, flags=0)
            for kind, own in public_addresses(host, port, self.at)
            if family in (socket.AF_UNSPEC, kind)
        ]

    async def close(self) -> None:
        """There is nothing to close."""


def public_addresses(host: str, port: int, at: str) -> list[tuple[int, str]]:
    """Family and address of everything that a host name stands for.

    Raises AskError where one of them belongs to a private or special network.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise AskError(at, f"there is no host {host}") from None
    addresses = [(int(kind), str(name[0]).partition("%")[0]) for kind, *_, name in found]
    for _, address in addresses:
        if not all(ip.is_global and not ip.is_multicast for ip in _meant(address)):
            raise AskError(at, f"{host} is not on the public network")
    return addresses


def _meant(address: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """An address, and the IPv4 address that it leads to: mapped, through 6to4 or Teredo, or translated."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return [ip]
    if ip.ipv4_mapped is not None:
        return [ip.ipv4_mapped]
    inner = [ip.sixtofour, *(ip.teredo or ())]
    if ip in TRANSLATED:
        inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return [ip, *(one for one in inner if one is not None)]
