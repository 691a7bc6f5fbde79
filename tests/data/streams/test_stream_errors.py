"""What a stream's files and the members of its samples may lack is said with file, sample and member."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.shard_cases import tar
from helpers.stream_cases import archives, sample, source

from v1lit.data.config import StreamConfig
from v1lit.data.errors import ShardError
from v1lit.data.example import ExampleError
from v1lit.data.remote import DEFAULT_RETRY
from v1lit.data.streams import members as stream_members
from v1lit.data.streams import samples as stream_samples
from v1lit.data.streams.members import Members
from v1lit.data.streams.samples import read_samples
from v1lit.data.streams.source import StreamSource

TEXTS = {"reply": "txt", "prompt": "Where?"}


def example(mapping: dict[str, Any], record: object = None, **others: bytes | str) -> None:
    members = {name.partition(".")[2]: data for name, data in sample("k", record, **others)}
    Members.read(mapping).example("k", members)


def test_a_file_that_is_not_there_is_an_error_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"none\.tar.*cannot be opened") as caught:
        list(read_samples(str(tmp_path / "none.tar"), DEFAULT_RETRY))
    assert caught.value.kind == "unreachable"


def test_a_disk_that_fails_while_it_is_read_is_an_error_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(shard: str, stream: object) -> Iterator[None]:
        raise OSError(5, "Input/output error")
        yield

    (path,) = archives(tmp_path, [1])
    monkeypatch.setattr(stream_samples, "_samples", fail)
    with pytest.raises(ShardError, match="Input/output error") as caught:
        list(read_samples(str(path), DEFAULT_RETRY))
    assert (caught.value.kind, caught.value.shard) == ("unreachable", str(path))


def test_an_error_to_which_webdataset_has_appended_is_told_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(shard: str, stream: object) -> Iterator[None]:
        error = ShardError(shard, "k", "is damaged", "member")
        error.args = (f"{error} @ <some stream>",)
        raise error
        yield

    (path,) = archives(tmp_path, [1])
    monkeypatch.setattr(stream_samples, "_samples", fail)
    with pytest.raises(ShardError) as caught:
        list(read_samples(str(path), DEFAULT_RETRY))
    assert str(caught.value) == str(ShardError(str(path), "k", "is damaged", "member"))


def test_a_text_that_is_too_long_for_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_members, "MAX_JSON_BYTES", 3)
    with pytest.raises(ExampleError, match="the member txt has 4 bytes, the limit is 3"):
        example(TEXTS, txt="long")


def test_an_image_that_is_none_is_named_by_its_number() -> None:
    with pytest.raises(ExampleError, match="image 0: "):
        example(TEXTS, txt="A", jpg=b"no image")


@pytest.mark.parametrize(
    ("mapping", "record", "said"),
    [
        ({}, {"boxes": "everywhere"}, "is str instead of a list of boxes"),
        ({}, {"boxes": [[1, 2, 3]]}, "instead of four numbers"),
        ({"image": []}, {"boxes": [[1, 2, 30, 20]]}, "there are boxes, but no image"),
    ],
)
def test_boxes_are_boxes_on_an_image(mapping: dict[str, Any], record: object, said: str) -> None:
    with pytest.raises(ExampleError, match=said):
        example({**TEXTS, "boxes": "json:boxes", **mapping}, record, txt="A")


def test_a_look_at_a_stream_leaves_out_what_cannot_be_used(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [*sample("bad", txt="A", jpg=b"no image"), *sample("good", txt="B")])
    stream = StreamSource(source(path, members=TEXTS), StreamConfig(), 0)
    assert [example.id for _, example in stream.examples(stream.train)] == ["good"]
