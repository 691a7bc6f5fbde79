"""One picture, however it is given: bytes, a file's record in a shard, a Pillow image opened or decoded."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from v1lit.backbones import list_backbones
from v1lit.backbones.registry import get_backbone
from v1lit.data.images import decode_image, read_header
from v1lit.grounding import ImageError, PatchMap, Region, as_seen, draw_regions, draw_tokens, panel

SIZE = (48, 32)


def scene(mode: str = "RGB") -> Image.Image:
    """Red on the left, green on the upper right, blue on the lower right."""
    image = Image.new("RGB", SIZE, (220, 30, 30))
    image.paste((30, 200, 40), (24, 0, 48, 16))
    image.paste((40, 40, 210), (24, 16, 48, 32))
    return image.convert(mode)


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def turned(format: str, orientation: int = 6, mode: str = "RGB") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(scene(mode), format, exif=exif)


def transparent(mode: str) -> Image.Image:
    image = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    image.paste((200, 10, 10, 128), (0, 0, 20, 32))
    image.paste((10, 10, 200, 255), (20, 0, 30, 32))
    return image.convert(mode)


def grey16() -> Image.Image:
    return Image.fromarray((np.arange(48 * 32).reshape(32, 48) * 40).astype(np.uint16))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(bits: int, colour: int, row: bytes, width: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, 2, bits, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * 2))
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *chunks, pixels, chunk(b"IEND", b"")])


def bitmap(alpha: int) -> bytes:
    """A 32-bit BMP with an alpha mask, two pixels of pure red."""
    header = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, 8, 2835, 2835, 0, 0)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(52)
    pixels = bytes([0, 0, 255, alpha]) * 2
    start = 14 + len(header) + len(masks)
    return struct.pack("<2sIHHI", b"BM", start + 8, 0, 0, start) + header + masks + pixels


FILES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encode(scene(), "JPEG"),
    "turned jpeg": lambda: turned("JPEG"),
    "mirrored jpeg": lambda: turned("JPEG", 5),
    "turned grey jpeg": lambda: turned("JPEG", 8, "L"),
    "cmyk jpeg": lambda: encode(scene("CMYK"), "JPEG"),
    "turned cmyk jpeg": lambda: turned("JPEG", 3, "CMYK"),
    "mpo": lambda: encode(scene(), "MPO", save_all=True, append_images=[scene("L").convert("RGB")]),
    "png": lambda: encode(scene()),
    "turned png": lambda: turned("PNG"),
    "turned webp": lambda: turned("WEBP"),
    "RGBA": lambda: encode(transparent("RGBA")),
    "LA": lambda: encode(transparent("LA")),
    "palette": lambda: encode(scene("P")),
    "palette, one transparent": lambda: encode(scene("P"), transparency=3),
    "palette with alpha": lambda: encode(transparent("RGBA").quantize(8)),
    "RGB, one transparent": lambda: encode(scene(), transparency=(220, 30, 30)),
    "grey, one transparent": lambda: encode(scene("L"), transparency=0),
    "1 bit": lambda: encode(scene("1")),
    "1 bit, one transparent": lambda: encode(scene("1"), transparency=0),
    "16-bit grey": lambda: encode(grey16()),
    "16-bit grey, one transparent": lambda: encode(grey16(), transparency=400),
    "transparent webp": lambda: encode(transparent("RGBA"), "WEBP", lossless=True),
    "bmp": lambda: encode(scene(), "BMP"),
    "palette bmp": lambda: encode(scene("P"), "BMP"),
    "1-bit bmp": lambda: encode(scene("1"), "BMP"),
    "bmp with alpha": lambda: bitmap(128),
    "gif": lambda: encode(scene("P"), "GIF", transparency=0),
    "animated gif": lambda: encode(scene("P"), "GIF", save_all=True, append_images=[Image.new("P", SIZE)]),
    "animated webp": lambda: encode(scene(), "WEBP", save_all=True, append_images=[Image.new("RGB", SIZE)]),
}


@pytest.mark.parametrize("file", FILES)
def test_all_ways_in_give_the_same_pixels(file: str) -> None:
    data = FILES[file]()
    expected = decode_image(data)
    opened, decoded = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data))
    decoded.load()
    before = decoded.mode, decoded.size, dict(decoded.info), decoded.tobytes()
    ways = {
        "record": decode_image(read_header(data)),
        "opened": as_seen(opened),
        "decoded": as_seen(decoded),
        "copied": as_seen(decoded.copy()),
        "twice": as_seen(as_seen(decoded)),
        "a file twice": as_seen(expected),
    }
    for way, image in ways.items():
        assert image.mode == "RGB", way
        assert image.size == expected.size == read_header(data).size, way
        assert np.array_equal(np.asarray(image), np.asarray(expected)), way
    assert (decoded.mode, decoded.size, dict(decoded.info), decoded.tobytes()) == before


@pytest.mark.parametrize("family", list_backbones())
def test_a_model_sees_a_turned_photo_upright(family: str) -> None:
    backbone = get_backbone(family)
    processor = backbone.image_processor("tiny")
    photo = Image.open(io.BytesIO(turned("JPEG")))
    tensors, maps = backbone.preprocess([photo], processor)
    upright, upright_maps = backbone.preprocess([decode_image(turned("JPEG"))], processor)
    assert maps[0].image_size == upright_maps[0].image_size == (32, 48)
    assert all(np.array_equal(tensors[name], upright[name]) for name in upright)


def test_drawings_are_on_the_turned_image() -> None:
    photo = Image.open(io.BytesIO(turned("PNG")))
    upright = decode_image(turned("PNG"))
    region, patch_map = Region.from_box((4, 30, 20, 46)), PatchMap.grid((32, 48), 3, 2)
    pairs = [
        (draw_regions(image, [region], ["a"]), draw_tokens(image, patch_map, [5]),
         panel(image, "Where?", "There.", patch_map=patch_map, tokens=[5], truth=region, side=96))
        for image in (photo, upright)
    ]  # fmt: skip
    for given, expected in zip(*pairs, strict=True):
        assert given.size == expected.size
        assert np.array_equal(np.asarray(given), np.asarray(expected))
    assert photo.size == SIZE


def test_a_map_of_the_unturned_size_is_refused() -> None:
    photo = Image.open(io.BytesIO(turned("JPEG")))
    for draw in (draw_tokens, lambda image, patch_map, _: panel(image, "q", "t", patch_map=patch_map)):
        with pytest.raises(ValueError, match=r"is for 48 x 32 pixels, but .* turns this image to 32 x 48"):
            draw(photo, PatchMap.grid(SIZE, 2, 3), [0])


def test_drawing_leaves_a_plain_image_alone() -> None:
    image = scene()
    draw_regions(image, [], [])
    draw_regions(image, [Region.from_box((0, 0, 9, 9))], ["a"])
    draw_tokens(image, PatchMap.grid(SIZE, 2, 2), []).putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(image), np.asarray(scene()))


@pytest.mark.parametrize(("bits", "row", "value"), [(2, b"\x1b", 1), (4, b"\x05\xaf", 5)])
def test_a_transparent_grey_of_few_bits_is_found(bits: int, row: bytes, value: int) -> None:
    data = png(bits, 0, row, 4, chunk(b"tRNS", struct.pack(">H", value)))
    assert as_seen(Image.open(io.BytesIO(data))).getpixel((1, 0)) == (255, 255, 255)
    assert as_seen(Image.open(io.BytesIO(data))).getpixel((0, 0)) == (0, 0, 0)


def test_a_transparent_colour_of_16_bits_is_found() -> None:
    row = struct.pack(">6H", 1000, 2000, 3000, 0, 0, 0)
    data = png(16, 2, row, 2, chunk(b"tRNS", struct.pack(">3H", 1000, 2000, 3000)))
    assert decode_image(data).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(data).getpixel((1, 0)) == (0, 0, 0)


def test_a_bitmap_whose_alpha_is_0_everywhere_is_opaque() -> None:
    assert decode_image(bitmap(0)).getpixel((0, 0)) == (255, 0, 0)
    assert decode_image(bitmap(128)).getpixel((0, 0)) == (255, 127, 127)


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA"])
def test_the_rarer_kinds_of_alpha_stand_on_white_too(mode: str) -> None:
    image = transparent("LA").convert("La") if mode == "La" else transparent(mode)
    assert as_seen(image).getpixel((40, 5)) == (255, 255, 255)
    assert as_seen(image).getpixel((25, 5)) != (255, 255, 255)


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
def test_white_of_16_bits_is_white_in_every_mode(mode: str) -> None:
    assert as_seen(Image.new(mode, SIZE, 65535)).getpixel((0, 0)) == (255, 255, 255)
    assert as_seen(Image.new(mode, SIZE, 20000)).getpixel((0, 0)) == (78, 78, 78)


def test_what_cannot_be_seen_is_refused_with_a_reason() -> None:
    with pytest.raises(ImageError, match=r"no pixels \(0 x 9\)"):
        as_seen(Image.new("RGB", (0, 9)))
    with pytest.raises(ImageError, match="floating-point pixels"):
        as_seen(Image.new("F", SIZE))
    with pytest.raises(ImageError, match="48 x 32 = 1536 pixels, the limit is 1535"):
        as_seen(scene(), max_pixels=1535)
    with pytest.raises(ImageError, match="damaged or cut off"):
        as_seen(Image.open(io.BytesIO(encode(scene(), "PNG")[:-60])))
    closed = Image.open(io.BytesIO(encode(scene())))
    closed.close()
    with pytest.raises(ImageError, match="closed"):
        as_seen(closed)
