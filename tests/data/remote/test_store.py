"""Object stores whose answers are wrong: what comes is compared with what was asked for and announced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from v1lit.data.remote import DEFAULT_RETRY, store
from v1lit.data.remote.error import ProblemError

URL = "s3://bucket/a.tar"
DATA = bytes(range(10))


class Store:
    """A file system of one object, read in blocks; what it says and sends can be changed."""

    protocol = "s3"
    async_impl = False

    def __init__(self, **said: Any) -> None:
        self.said = {"size": len(DATA), "type": "file", "ETag": "one", **said}
        self.send: Callable[[int, int], bytes] = lambda start, end: DATA[start:end]

    def _strip_protocol(self, url: str) -> str:
        return url.removeprefix("s3://")

    def info(self, path: str) -> dict[str, Any]:
        return self.said

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        return self.send(start, end)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[[Store], bytes]:
    """Reads the object of a store in blocks of four bytes."""
    monkeypatch.setattr(store, "BLOCK_BYTES", 4)

    def read(place: Store) -> bytes:
        monkeypatch.setattr(store, "open_filesystem", lambda url, retry: place)
        with store.open_object(URL, DEFAULT_RETRY) as body:
            return b"".join(body.chunks)

    return read


def test_a_good_store_is_read_block_by_block(read: Callable[[Store], bytes]) -> None:
    assert read(Store()) == DATA


@pytest.mark.parametrize(
    ("said", "reason"),
    [({"type": "directory"}, "a folder, not a file"), ({"size": None}, "does not say how large")],
)
def test_what_is_no_file_of_a_known_size_is_not_asked_for_again(
    read: Callable[[Store], bytes], said: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ProblemError, match=reason) as caught:
        read(Store(**said))
    assert caught.value.final


@pytest.mark.parametrize(
    ("send", "reason", "restart"),
    [
        (lambda start, end: DATA, "sent more than bytes 0 to 4", True),
        (lambda start, end: DATA[start : end - 1], "sent 3 of the 4 bytes from 0 on", False),
    ],
)
def test_a_block_of_another_length_is_a_failed_attempt(
    read: Callable[[Store], bytes], send: Callable[[int, int], bytes], reason: str, restart: bool
) -> None:
    place = Store()
    place.send = send
    with pytest.raises(ProblemError, match=reason) as caught:
        read(place)
    assert (caught.value.restart, caught.value.final) == (restart, False)


def test_a_file_that_was_replaced_between_two_blocks_is_read_from_its_beginning(
    read: Callable[[Store], bytes],
) -> None:
    place = Store()

    def replace(start: int, end: int) -> bytes:
        place.said = {**place.said, "ETag": "two"}
        return DATA[start:end]

    place.send = replace
    with pytest.raises(ProblemError, match="replaced while it was read") as caught:
        read(place)
    assert caught.value.restart
