"""Images that rows name or hold: found below one folder, read with a limit, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from v1lit.data.images import EncodedImage, decode_image, read_header
from v1lit.data.shards import MAX_IMAGE_BYTES
from v1lit.errors import one_line
from v1lit.paths import is_url


@dataclass(frozen=True)
class ImageFolder:
    """Where the images of rows are; nothing outside of it is read."""

    root: Path

    def load(self, given: object) -> EncodedImage:
        """The image that a row gives: a path, bytes, or an object with `bytes` or a `path`.

        Raises ValueError where there is none, it lies outside of the folder, or cannot be decoded.
        """
        if isinstance(given, dict) and isinstance(given.get("bytes"), bytes):
            return checked_image(given["bytes"])
        if isinstance(given, bytes):
            return checked_image(given)
        if isinstance(given, dict):
            given = given.get("path")
        if not isinstance(given, str) or not given:
            raise ValueError(f"the image is {given!r:.60}, neither a path nor bytes")
        return checked_image(self._read(given))

    def _read(self, given: str) -> bytes:
        if is_url(given):
            raise ValueError(f"the image is the address {given!r:.100}; download the images and name files")
        try:
            path = (self.root / given).resolve()
            if not path.is_relative_to(self.root.resolve()):
                why = f"lies outside of {self.root}: say with --images in which folder all images are"
                raise ValueError(f"the image {given!r:.100} {why}")
            with open(path, "rb") as file:
                return file.read(MAX_IMAGE_BYTES + 1)
        except OSError as error:
            said = error.strerror or one_line(error)
            raise ValueError(f"the image {given!r:.100} cannot be read in {self.root} ({said})") from error


def checked_image(data: bytes) -> EncodedImage:
    """The image in these bytes; raises ValueError for one that is too large or cannot be decoded."""
    if len(data) > MAX_IMAGE_BYTES:
        raise ValueError(f"the image file has more than {MAX_IMAGE_BYTES} bytes, which is the limit")
    return _decoded(data)


@lru_cache(maxsize=64)  # Neighbouring rows often share an image.
def _decoded(data: bytes) -> EncodedImage:
    image = read_header(data)
    decode_image(image)
    return image
