"""Images of rows are read below one folder, and what cannot be one is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.rows import picture
from helpers.v1g_cases import PHOTO

from v1lit.data.importing.images import ImageFolder
from v1lit.data.shards import MAX_IMAGE_BYTES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "images", "a/wide.jpg")
    picture(tmp_path, "outside.jpg")
    return tmp_path / "images"


def test_an_image_is_a_path_bytes_or_an_object_with_either(folder: Path) -> None:
    given = ["a/wide.jpg", str(folder / "a/wide.jpg"), PHOTO, {"bytes": PHOTO, "path": "nowhere.jpg"}]
    for image in [*given, {"bytes": None, "path": "a/wide.jpg"}]:
        assert ImageFolder(folder).load(image).size == (60, 40)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (None, "the image is None, neither a path nor bytes"),
        ("", "the image is '', neither a path nor bytes"),
        ("../outside.jpg", "lies outside of .*images: say with --images"),
        ("https://host/x.jpg", "the image is the address 'https://host/x.jpg'; download the images"),
        ("b.jpg", "'b.jpg' cannot be read in .*images .No such file"),
        ("a", "'a' cannot be read in .*images .Is a directory"),
        (b"no picture", "image"),
        (b"0" * (MAX_IMAGE_BYTES + 1), f"more than {MAX_IMAGE_BYTES} bytes"),
        (PHOTO[:-20], "cut off"),
    ],
)
def test_what_is_no_image_is_refused(folder: Path, given: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ImageFolder(folder).load(given)


def test_a_link_does_not_lead_out(folder: Path) -> None:
    (folder / "link.jpg").symlink_to(folder.parent / "outside.jpg")
    with pytest.raises(ValueError, match="lies outside of"):
        ImageFolder(folder).load("link.jpg")
