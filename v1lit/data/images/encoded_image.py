"""Image files: their header, and their pixels as a person sees them.

The bytes of an image are kept unchanged all the way from its source to the model's image processor. What this
module adds is knowledge about them: the kind of file, the size as displayed, and how to open them safely.
Which pixels an opened image has is decided by `v1lit.grounding.picture`, for images from anywhere.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field

from PIL import Image

from v1lit.data.images.jpeg import plain_jpeg_size
from v1lit.errors import one_line
from v1lit.grounding.picture import MAX_PIXELS, ImageError, as_seen, by, check_size, orientation

FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif"}
"""Names of formats in Pillow, and ours, the file extensions. MPO: a JPEG with extras, as of phones."""

EXTENSIONS = {"jpg": "jpg", "jpeg": "jpg", "png": "png", "webp": "webp", "bmp": "bmp", "gif": "gif"}
"""File extensions that are read from shards, and our names of their formats."""
_TURNING_CHUNKS = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type exif")
"""How the chunks of a PNG begin that can hold an orientation."""


@dataclass(frozen=True)
class EncodedImage:
    """The unchanged bytes of an image file and what its header says."""

    data: bytes = field(repr=False)
    format: str
    """`jpg`, `png`, `webp`, `bmp` or `gif`."""
    size: tuple[int, int]
    """Width and height in pixels as displayed, which is after applying the EXIF orientation."""


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> EncodedImage:
    """Read kind and displayed size of an image without decoding its pixels.

    Raises ImageError where there are no bytes, no known format, or more than `max_pixels` pixels.
    """
    size = plain_jpeg_size(data)
    if size is not None and size[0] * size[1] <= min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels):
        return EncodedImage(data, "jpg", size)
    with _open(data, max_pixels) as image:
        # Only a chunk behind the pixels asks for decoding them.
        late = image.format == "PNG" and any(name in data for name in _TURNING_CHUNKS)
        turned = orientation(image, header_only=not late) >= 5
        size = (image.height, image.width) if turned else (image.width, image.height)
        return EncodedImage(data, FORMATS[str(image.format)], size)


def decode_image(image: bytes | EncodedImage, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The pixels of an image as a person sees it, RGB, as of `as_seen`; of an animation its first frame.

    Raises ImageError as `read_header`, for damaged or cut-off pixels, and for another size than `image.size`.
    """
    data = image.data if isinstance(image, EncodedImage) else image
    with _open(data, max_pixels) as opened:
        rgb = as_seen(opened, max_pixels=max_pixels)
    if isinstance(image, EncodedImage) and rgb.size != tuple(image.size):
        raise ImageError(f"the image was said to be {by(image.size)} pixels but decodes to {by(rgb.size)}")
    return rgb


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise ImageError("the image has no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "BMP", "GIF"))
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image claims to have too many pixels ({one_line(error)})") from error
    except Exception as error:
        raise ImageError(
            f"the image is not a readable JPEG, PNG, WebP, BMP or GIF file; it begins with {data[:12]!r}"
        ) from error
    check_size(image.size, max_pixels)  # Pillow's own limit only warns, and others like to switch it off.
    return image
