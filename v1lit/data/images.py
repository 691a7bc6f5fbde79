"""Image files: their header, and their pixels as a person sees them.

The bytes of an image are kept unchanged all the way from its source to the model's image processor. What this
module
adds is knowledge about them: the kind of file, the size as displayed, and a decoder that gives what a viewer
shows.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from v1lit.data.jpeg import plain_jpeg_size

MAX_PIXELS = 2**26
"""Default limit on width x height, checked before any pixel is decoded (8192 x 8192)."""

FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}
"""Pillow's name of a format -> ours, also the file extension. MPO: a JPEG with extras, as phones write it."""

EXTENSIONS = {"jpg": "jpg", "jpeg": "jpg", "png": "png", "webp": "webp", "bmp": "bmp"}
"""File extensions that are read from shards -> the name of the format."""

_GREY16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """An image that cannot be used; the text is a sentence that says why."""


@dataclass(frozen=True)
class EncodedImage:
    """The unchanged bytes of an image file and what its header says.

    Attributes:
        data: the file.
        format: "jpg", "png", "webp" or "bmp".
        size: (width, height) in pixels as displayed, which is after applying the EXIF orientation.
    """

    data: bytes = field(repr=False)
    format: str
    size: tuple[int, int]


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> EncodedImage:
    """Read kind and displayed size of an image without decoding its pixels.

    Raises:
        ImageError: no bytes, not one of the known formats, or more than `max_pixels` pixels.
    """
    size = plain_jpeg_size(data)
    if size is not None and size[0] * size[1] <= min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels):
        return EncodedImage(data, "jpg", size)
    with _open(data, max_pixels) as image:
        return EncodedImage(
            data, FORMATS[str(image.format)], _displayed_size(image, _orientation(image, data))
        )


def decode_image(image: bytes | EncodedImage, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to RGB as a person sees it.

    The EXIF orientation is applied, transparent parts stand on white, CMYK becomes RGB, and 16-bit grey is
    scaled to 8 bits (Pillow alone would clip nearly all of it to white). Of an animation this is the first
    frame.

    Raises:
        ImageError: as `read_header`; also damaged or cut-off pixel data, and a size other than `image.size`.
    """
    data = image.data if isinstance(image, EncodedImage) else image
    with _open(data, max_pixels) as opened:
        orientation = _orientation(opened, data)
        try:
            opened.load()
            rgb = _to_rgb(opened)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises many kinds, depending on the format and the damage.
            raise ImageError(f"the image data is damaged or cut off ({_one_line(error)})") from error
    if orientation in _TRANSPOSE:
        rgb = rgb.transpose(_TRANSPOSE[orientation])
    if isinstance(image, EncodedImage) and rgb.size != tuple(image.size):
        raise ImageError(f"the image was said to be {_by(image.size)} pixels but decodes to {_by(rgb.size)}")
    return rgb


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise ImageError("the image has no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "BMP"))
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image header claims too many pixels ({_one_line(error)})") from error
    except Exception as error:
        raise ImageError("the image is not a readable JPEG, PNG, WebP or BMP file") from error
    # Pillow's own limit only warns, and other libraries like to switch it off.
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"the image header claims {_by(image.size)} = {image.width * image.height} pixels, "
            f"the limit is {max_pixels}"
        )
    return image


def _orientation(image: Image.Image, data: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it is unreadable (viewers do the same)."""
    try:
        # The PNG plugin's own getexif decodes first, which only a chunk behind the pixels makes necessary.
        late = image.format == "PNG" and b"eXIf" in data
        exif = image.getexif() if late else Image.Image.getexif(image)
        orientation = exif.get(_ORIENTATION_TAG, 1)
    except MemoryError:
        raise
    except Exception:
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def _displayed_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    return (image.height, image.width) if orientation >= 5 else (image.width, image.height)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.format == "JPEG" and image.mode == "RGB":
        return image  # Converting it would be a copy, a twentieth of the time that decoding takes.
    if image.mode in _GREY16:
        image = _grey_to_8_bits(image)
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits -> "L", or "LA" where the file names one transparent value."""
    values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    grey = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
        return Image.merge("LA", (grey, Image.fromarray(alpha)))
    return grey


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
