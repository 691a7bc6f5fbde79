"""Images come out as a person sees them, and bad ones are refused before they cost anything."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from v1lit.data.images import EncodedImage, ImageError, decode_image, read_header

pytestmark = pytest.mark.dependencies

RED, GREEN, BLUE = (220, 30, 30), (30, 200, 40), (40, 40, 210)


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def scene() -> Image.Image:
    """48 x 32: red on the left, green on the upper right, blue on the lower right."""
    image = Image.new("RGB", (48, 32), RED)
    image.paste(GREEN, (24, 0, 48, 16))
    image.paste(BLUE, (24, 16, 48, 32))
    return image


def assert_same(image: Image.Image, expected: Image.Image) -> None:
    assert image.mode == expected.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def assert_colours_in_place(image: Image.Image) -> None:
    for point, colour in [((8, 16), RED), ((36, 8), GREEN), ((36, 24), BLUE)]:
        assert np.allclose(np.asarray(image)[point[1], point[0]], colour, atol=25)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [png_chunk(b"IHDR", header), png_chunk(b"IDAT", b""), png_chunk(b"IEND", b"")]
    )


@pytest.mark.parametrize(
    ("pillow_format", "name", "options"),
    [
        ("JPEG", "jpg", {"quality": 95}),
        ("PNG", "png", {}),
        ("WEBP", "webp", {"lossless": True}),
        ("BMP", "bmp", {}),
    ],
)
def test_header_names_format_and_size(pillow_format: str, name: str, options: dict) -> None:
    data = encode(scene(), pillow_format, **options)
    assert read_header(data) == EncodedImage(data, name, (48, 32))
    if name == "jpg":  # Colours bleed at the edges.
        assert_colours_in_place(decode_image(data))
    else:
        assert_same(decode_image(data), scene())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_every_exif_orientation_is_applied(orientation: int, format: str) -> None:
    stored_from_displayed = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = scene() if stored_from_displayed is None else scene().transpose(stored_from_displayed)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(
        stored, format, exif=exif, **({"quality": 100, "subsampling": 0} if format == "JPEG" else {})
    )
    assert read_header(data).size == (48, 32)
    assert_colours_in_place(decode_image(data))


def turning_chunk(kind: str) -> bytes:
    """A chunk of a PNG that says in one of three ways that a viewer turns the image by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    if kind == "eXIf":
        return png_chunk(b"eXIf", raw.removeprefix(b"Exif\0\0"))
    if kind == "profile":
        text = b"\nexif\n%8d\n" % len(raw) + raw.hex().encode() + b"\n"
        return png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    return png_chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<rdf:Description tiff:Orientation="6"/>')


@pytest.mark.parametrize("before", ["IDAT", "IEND"])
@pytest.mark.parametrize("kind", ["eXIf", "profile", "xmp"])
def test_png_orientation_counts_in_header_and_pixels_wherever_it_stands(kind: str, before: str) -> None:
    data = encode(scene(), "PNG")
    place = data.index(before.encode()) - 4
    data = data[:place] + turning_chunk(kind) + data[place:]
    assert read_header(data).size == decode_image(data).size == (32, 48)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_unreadable_exif_is_ignored_as_viewers_do() -> None:
    data = encode(scene(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff" + b"\xff" * 20)
    assert read_header(data).size == decode_image(data).size == (48, 32)


def test_grey_of_16_bits_keeps_its_shades() -> None:
    values = np.linspace(0, 65535, 32 * 48).astype(np.uint16).reshape(32, 48)
    decoded = np.asarray(decode_image(encode(Image.fromarray(values))))
    assert np.abs(decoded[..., 0] - values / 257).max() <= 0.5
    assert decoded.min() == 0
    assert decoded.max() == 255


def test_transparent_value_of_16_bit_grey_becomes_white() -> None:
    values = np.full((32, 48), 20000, np.uint16)
    values[:, :24] = 513
    data = encode(Image.fromarray(values), transparency=513)
    assert decode_image(data).getpixel((3, 3)) == (255, 255, 255)
    assert decode_image(data).getpixel((40, 3)) == (78, 78, 78)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_stand_on_white(mode: str) -> None:
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 20, 40))
    decoded = decode_image(encode(image.convert(mode)))
    assert decoded.getpixel((30, 20)) == (255, 255, 255)
    assert decoded.getpixel((10, 20)) == (0, 0, 0)


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([0, 0, 0, *RED, *BLUE])
    image.paste(1, (0, 0, 20, 40))
    assert decode_image(encode(image)).getpixel((30, 5)) == (0, 0, 0)
    transparent = decode_image(encode(image, transparency=0))
    assert transparent.getpixel((30, 5)) == (255, 255, 255)
    assert transparent.getpixel((5, 5)) == RED


def test_one_bit_images_are_black_and_white() -> None:
    image = Image.new("1", (40, 40), 1)
    image.paste(0, (0, 0, 20, 40))
    decoded = decode_image(encode(image))
    assert decoded.getpixel((5, 5)) == (0, 0, 0)
    assert decoded.getpixel((35, 5)) == (255, 255, 255)


def test_a_decoded_jpeg_is_what_pillow_makes_of_it_and_needs_no_file() -> None:
    data = encode(scene(), "JPEG", quality=60, icc_profile=b"unused" * 100)
    decoded = decode_image(data)
    assert_same(decoded, Image.open(io.BytesIO(data)).convert("RGB"))
    assert_same(pickle.loads(pickle.dumps(decoded)), decoded.copy())
    assert_same(decoded.resize((20, 20)), decoded.copy().resize((20, 20)))


def test_cmyk_is_not_inverted() -> None:
    assert_colours_in_place(decode_image(encode(scene().convert("CMYK"), "JPEG", quality=100, subsampling=0)))


def test_embedded_colour_profile_does_not_disturb() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert_same(decode_image(encode(scene(), icc_profile=profile)), scene())


def test_first_frame_of_an_animation() -> None:
    data = encode(scene(), "WEBP", save_all=True, append_images=[Image.new("RGB", (48, 32))], lossless=True)
    assert_same(decode_image(data), scene())


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(60000, 60000), (12000, 12000)])
def test_too_many_pixels_are_refused_from_the_header(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = png_claiming(width, height)
    with pytest.raises(ImageError, match="claims"):
        read_header(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # what many libraries do
    with pytest.raises(ImageError, match=f"{width} x {height}"):
        decode_image(data)


def test_pixel_limit_is_an_option() -> None:
    data = encode(scene())
    assert read_header(data, max_pixels=48 * 32).size == (48, 32)
    with pytest.raises(ImageError, match="the limit is 1535"):
        read_header(data, max_pixels=48 * 32 - 1)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_cut_off_files_are_noticed(format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    data = encode(noise, format)
    with pytest.raises(ImageError):
        decode_image(data[: len(data) * 6 // 10])


@pytest.mark.parametrize("data", [b"", b"no image", b"GIF89a" + bytes(40), b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        read_header(data)


def test_what_is_no_image_shows_what_it_is() -> None:
    with pytest.raises(ImageError, match=r"not a readable JPEG, .*; it begins with b'<!DOCTYPE ht'"):
        read_header(b"<!DOCTYPE html><html>Not found")


def test_size_other_than_promised_is_refused() -> None:
    image = EncodedImage(encode(scene()), "png", (32, 48))
    with pytest.raises(ImageError, match="32 x 48 pixels but decodes to 48 x 32"):
        decode_image(image)


def test_special_images_of_the_broken_file_look_as_before(shared: Path) -> None:
    """All four were made from photos of the same kind: light, slightly red, far from black and white."""
    from pyarrow import parquet

    rows = parquet.read_table(
        shared / "data/v1g_real/broken.parquet", columns=["image", "defect"]
    ).to_pylist()
    pictures = {row["defect"]: row["image"]["bytes"] for row in rows if row["image"] is not None}
    for name in [
        "cmyk_jpeg",
        "gray16_png",
        "palette_transparency_png",
        "exif_rotated_jpeg",
        "unicode_rtl_text",
    ]:
        decoded = decode_image(pictures[name])
        assert decoded.size == (640, 480)
        values = np.asarray(decoded)
        assert 130 < values.mean() < 225, name
        assert values.std() > 10, name
