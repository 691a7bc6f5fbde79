"""No message shows what opens a door."""

from __future__ import annotations

import pytest

from v1lit.data.remote.error import shown


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://me:secret@host/a.tar?token=secret#x", "https://***@host/a.tar?***#x"),
        ("s3://bucket/a.tar", "s3://bucket/a.tar"),
        ("/disk/a?b.tar", "/disk/a?b.tar"),
        ("https://[no-address/a.tar?token=secret", "https://[no-address/a.tar"),
    ],
)
def test_passwords_and_tokens_of_a_url_are_left_out(url: str, said: str) -> None:
    assert shown(url) == said
