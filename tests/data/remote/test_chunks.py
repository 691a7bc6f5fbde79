"""A remote file that is read once, from front to back: it is continued where it broke off, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from v1lit.data.remote import RemoteError, Retry, chunks
from v1lit.data.remote.answer import Body

URL = "https://host/a.tar"
RETRY = Retry(attempts=3, first_wait=0.0, longest_wait=0.0)


def read(answers: list[Body], monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What comes of these answers, one per attempt."""
    waiting = iter(answers)

    @contextmanager
    def answer(url: str, retry: Retry, start: int, tag: str | None) -> Iterator[Body]:
        yield next(waiting)

    monkeypatch.setattr(chunks, "open_body", answer)
    return b"".join(chunks.remote_chunks(URL, RETRY))


def broken(*pieces: bytes) -> Iterator[bytes]:
    yield from pieces
    raise ConnectionResetError("gone")


def test_an_answer_that_begins_anew_is_not_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Body(0, 6, "one", broken(b"ab", b"c"))
    again = Body(0, 6, "one", iter([b"ab", b"cd", b"ef"]))
    assert read([first, again], monkeypatch) == b"abcdef"


def test_a_file_that_was_replaced_meanwhile_cannot_be_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = Body(0, 6, "one", broken(b"abc")), Body(3, 6, "two", iter([b"xyz"]))
    with pytest.raises(RemoteError, match="replaced while it was read"):
        read([first, other], monkeypatch)  # a third attempt would find no answer


def test_an_answer_that_is_too_short_is_no_whole_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RemoteError, match="4 of 6 bytes came"):
        read([Body(0, 6, "one", iter([b"abcd"])), *[Body(4, 6, "one", iter([]))] * 2], monkeypatch)


def test_mistakes_of_the_program_are_no_failed_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> Iterator[bytes]:
        yield b"a"
        raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        read([Body(0, 6, "one", wrong())], monkeypatch)
