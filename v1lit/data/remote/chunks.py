"""`remote_chunks`: a remote file from its beginning to its end as it comes, without a copy of it."""

from __future__ import annotations

from collections.abc import Iterator

from v1lit.data.remote.body import open_body
from v1lit.data.remote.download import check_framed
from v1lit.data.remote.error import ProblemError
from v1lit.data.remote.retry import Retry


def remote_chunks(url: str, retry: Retry) -> Iterator[bytes]:
    """The content of a file in pieces of any size. One that breaks off is continued where it stopped.

    Raises RemoteError after as many failed attempts in a row as `retry` allows, after one that no other can
    mend, and where the file was replaced meanwhile; ValueError for an unknown scheme or one whose package is
    missing.
    """
    done, failed, tag = 0, 0, None
    while True:
        try:
            with open_body(url, retry, done, tag) as body:
                check_framed(body)
                if done and body.tag != tag:
                    raise ProblemError("the file was replaced while it was read", final=True)
                tag, behind = body.tag, done - body.start
                for chunk in body.chunks:
                    if behind >= len(chunk):  # the server began anew
                        behind -= len(chunk)
                        continue
                    fresh, behind = chunk[behind:], 0
                    done, failed = done + len(fresh), 0
                    yield fresh
                if body.total is not None and done < body.total:
                    raise ProblemError(f"{done} of {body.total} bytes came")
            return
        except Exception as error:
            failed += 1
            retry.pause(url, failed, error)
