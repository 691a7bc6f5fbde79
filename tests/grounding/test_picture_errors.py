"""An image that cannot be looked at is the example's mistake; a machine without memory is not."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from v1lit.grounding.picture import ImageError, as_seen, orientation


class Broken(Image.Image):
    """An image whose pixels and EXIF data cannot be read, for a reason that can be chosen."""

    reason: BaseException

    def load(self) -> Any:
        raise self.reason

    def getexif(self) -> Any:
        raise self.reason


@pytest.fixture
def image() -> Broken:
    made = Image.new("RGB", (4, 4))
    made.__class__ = Broken
    assert isinstance(made, Broken)
    return made


def test_damaged_pixels_are_an_image_error_on_one_line(image: Broken) -> None:
    image.reason = OSError("cut\noff")
    with pytest.raises(ImageError, match=r"damaged or cut off \(cut off\)"):
        as_seen(image)


def test_damaged_exif_data_turn_nothing(image: Broken) -> None:
    image.reason = SyntaxError("no EXIF")
    assert orientation(image) == 1


def test_want_of_memory_is_no_damage(image: Broken) -> None:
    image.reason = MemoryError()
    with pytest.raises(MemoryError):
        as_seen(image)
    with pytest.raises(MemoryError):
        orientation(image)
