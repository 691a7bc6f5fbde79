"""A JPEG's size read from its segments is never another than Pillow's, whatever the file is made of."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from v1lit.data.images import EncodedImage, ImageError, read_header
from v1lit.data.images import encoded_image as images
from v1lit.data.images.jpeg import MAX_SEGMENTS, plain_jpeg_size

pytestmark = pytest.mark.filterwarnings(  # Pillow's, about broken Exif and MPO, and sizes that bytes claim.
    "ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning"
)

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def jpeg(mode: str = "RGB", format: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((48, 32)).convert(mode).save(file, format, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def segment(marker: int, content: bytes, length: int | None = None) -> bytes:
    return struct.pack(">HH", marker, len(content) + 2 if length is None else length) + content


PLAIN = {
    "colour": jpeg(),
    "grey": jpeg("L"),
    "cmyk": jpeg("CMYK"),
    "progressive": jpeg(progressive=True),
    "optimized": jpeg(optimize=True, quality=95, subsampling=0),
    "without interpolation of colours": jpeg(keep_rgb=True),
    "restart markers": jpeg(restart_marker_blocks=1),
    "comment": jpeg(comment=b"\xff\xd8\xff\xda by hand"),
    "density": jpeg(dpi=(300, 300)),
    "colour profile": jpeg(icc_profile=PROFILE),
    "colour profile in parts": jpeg(icc_profile=PROFILE * 300),
}
UNUSUAL = {
    **{f"orientation {number}": jpeg(exif=exif(number)) for number in range(1, 9)},
    "xmp": jpeg(xmp=XMP),
    "broken exif": jpeg(exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff" + b"\xff" * 20),
    "mpo": jpeg(format="MPO", save_all=True, append_images=[Image.new("RGB", (20, 20))]),
    "coarse tables": jpeg(qtables=[[2000] * 64]),
}


def segments_of(data: bytes) -> list[bytes]:
    """The file in pieces: its start, its segments, and what follows from the first scan on."""
    pieces, start = [data[:2]], 2
    while data[start + 1] != 0xDA:
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        pieces.append(data[start:end])
        start = end
    return [*pieces, data[start:]]


def with_frame(content: bytes) -> bytes:
    """A colour JPEG whose frame says this instead."""
    pieces = [
        segment(0xFFC0, content) if piece[1] == 0xC0 else piece for piece in segments_of(PLAIN["colour"])
    ]
    return b"".join(pieces)


def with_first(piece: bytes) -> bytes:
    """A colour JPEG with this before its other segments."""
    start, *rest = segments_of(PLAIN["colour"])
    return b"".join([start, piece, *rest])


LAYERS = b"\1\x22\0\2\x11\1\3\x11\1"
NEARLY_PLAIN = {
    "two frames": with_first(segment(0xFFC0, struct.pack(">BHHB", 8, 5, 7, 3) + LAYERS)),
    "12 bits": with_frame(struct.pack(">BHHB", 12, 32, 48, 3) + LAYERS),
    "two layers": with_frame(struct.pack(">BHHB", 8, 32, 48, 2) + LAYERS[:6]),
    "no layers": with_frame(struct.pack(">BHHB", 8, 32, 48, 0)),
    "half a layer": with_frame(struct.pack(">BHHB", 8, 32, 48, 3) + LAYERS[:8]),
    "a frame cut off": with_frame(b"\x08\0\x20\0"),
    "no frame": b"".join(piece for piece in segments_of(PLAIN["colour"]) if piece[1] != 0xC0),
    "no width": with_frame(struct.pack(">BHHB", 8, 32, 0, 3) + LAYERS),
    "no height": with_frame(struct.pack(">BHHB", 8, 0, 48, 3) + LAYERS),
    "a lossless frame": with_first(segment(0xFFC3, struct.pack(">BHHB", 8, 5, 7, 3) + LAYERS)),
    "a table cut off": with_first(segment(0xFFDB, b"\0" * 64)),
    "a table and a half": with_first(segment(0xFFDB, b"\0" * 100)),
    "a wide table cut off": with_first(segment(0xFFDB, b"\x10" + b"\0" * 64)),
    "no table": with_first(segment(0xFFDB, b"")),
    "a short JFIF": with_first(segment(0xFFE0, b"JFIF\0\1")),
    "a short Adobe": with_first(segment(0xFFEE, b"Adobe\0")),
    "a short profile": with_first(segment(0xFFE2, b"ICC_PROFILE\0\1")),
    "a miscounted profile": with_first(segment(0xFFE2, b"ICC_PROFILE\0\1\5rest")),
    "a broken Photoshop": with_first(segment(0xFFED, b"Photoshop 3.0\x008BIM\4\4")),
    "a broken MPF": with_first(segment(0xFFE2, b"MPF\0II*\0\0\0")),
    "a thumbnail": with_first(segment(0xFFE0, b"JFXX\0\x10" + PLAIN["grey"])),
    "padding": with_first(b"\xff\xff"),
    "garbage": with_first(b"garbage"),
    "an escaped byte": with_first(b"\xff\0"),
    "a restart": with_first(b"\xff\xd0"),
    "a start in between": with_first(b"\xff\xd8"),
    "an unknown marker": with_first(b"\xff\x01"),
    "a scan first": with_first(segment(0xFFDA, b"")),
    "only a start": b"\xff\xd8\xff",
    **{f"a length of {length}": with_first(segment(0xFFFE, b"", length)) for length in (0, 1, 65535)},
}


def outcome(read: Callable[[bytes], EncodedImage], data: bytes) -> tuple[Any, ...]:
    try:
        image = read(data)
    except ImageError as error:
        return (str(error),)
    return image.format, image.size


def read_by_pillow(data: bytes) -> EncodedImage:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "plain_jpeg_size", lambda data: None)
        return read_header(data)


def assert_as_pillow(data: bytes) -> None:
    assert outcome(read_header, data) == outcome(read_by_pillow, data)


@pytest.mark.parametrize("name", PLAIN)
def test_common_files_are_read_without_pillow(name: str) -> None:
    assert plain_jpeg_size(PLAIN[name]) == (48, 32)
    assert_as_pillow(PLAIN[name])


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_is_left_to_pillow(name: str) -> None:
    assert plain_jpeg_size(UNUSUAL[name]) is None
    assert_as_pillow(UNUSUAL[name])


@pytest.mark.parametrize("name", NEARLY_PLAIN)
def test_what_is_nearly_plain_is_as_pillow_says(name: str) -> None:
    assert_as_pillow(NEARLY_PLAIN[name])


@pytest.mark.parametrize("data", [PLAIN["colour profile"], PLAIN["progressive"], UNUSUAL["orientation 6"]])
def test_cut_off_anywhere_it_is_as_pillow_says(data: bytes) -> None:
    for end in range(len(data)):
        assert_as_pillow(data[:end])


numbers = st.integers(0, 2**16 - 1)
frames = st.builds(
    lambda bits, height, width, layers, given: struct.pack(">BHHB", bits, height, width, layers) + given,
    st.sampled_from([8, 8, 8, 12]),
    numbers,
    numbers,
    st.integers(0, 5),
    st.integers(0, 5).map(lambda layers: b"\1\x11\0" * layers) | st.binary(max_size=12),
)
contents = st.one_of(
    frames,
    st.binary(max_size=20),
    st.integers(0, 3).map(lambda count: bytes([0, *range(1, 65)]) * count),
    st.builds(
        lambda name, rest: name + rest,
        st.sampled_from(
            [
                b"JFIF\0",
                b"JFXX\0",
                b"Exif\0\0",
                b"Adobe",
                b"ICC_PROFILE\0",
                b"MPF\0",
                b"Photoshop 3.0\0",
                b"8BIM",
            ]
        ),
        st.binary(max_size=24),
    ),
)
markers = st.sampled_from([0xFF00, 0xFF01, 0xFFFE, 0xFFFF]) | st.integers(0xFFC0, 0xFFEF)
odd_segments = st.one_of(
    st.builds(segment, markers, contents, st.none() | st.integers(0, 40)),
    st.binary(max_size=4),
    st.integers(1, 4).map(lambda count: b"\xff" * count),
    st.sampled_from([piece for data in UNUSUAL.values() for piece in segments_of(data)[:-1]]),
)


@st.composite
def patched(draw: st.DrawFn) -> bytes:
    """A JPEG with pieces put in, taken out, doubled or swapped."""
    pieces = segments_of(draw(st.sampled_from([*PLAIN.values(), *UNUSUAL.values()])))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(1, len(pieces)))
        if draw(st.booleans()):
            pieces.insert(place, draw(odd_segments | st.sampled_from(pieces[1:] or [b""])))
        elif place < len(pieces):
            del pieces[place]
    return b"".join(pieces)


@settings(max_examples=400, deadline=None)
@given(patched())
def test_any_segments_are_as_pillow_says(data: bytes) -> None:
    assert_as_pillow(data)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_changed_bytes_are_as_pillow_says(data: st.DataObject) -> None:
    changed = bytearray(data.draw(st.sampled_from([*PLAIN.values(), *UNUSUAL.values()])))
    header = changed.index(b"\xff\xda") + 4
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, header))] = data.draw(st.integers(0, 255))
    assert_as_pillow(bytes(changed))


@given(st.binary(max_size=60).map(lambda rest: b"\xff\xd8\xff" + rest))
def test_any_bytes_are_as_pillow_says(data: bytes) -> None:
    assert_as_pillow(data)


def test_a_file_of_endless_segments_is_not_walked_through() -> None:
    start, *rest = segments_of(PLAIN["colour"])
    assert plain_jpeg_size(start + segment(0xFFFE, b"") * (MAX_SEGMENTS - len(rest)) + b"".join(rest))
    assert plain_jpeg_size(start + segment(0xFFFE, b"") * MAX_SEGMENTS + b"".join(rest)) is None


@pytest.mark.parametrize(("side", "limit"), [(9000, 2**26), (14000, 2**30), (40, 40 * 40 - 1)])
def test_too_many_pixels_are_told_as_of_any_other_file(side: int, limit: int) -> None:
    pieces = segments_of(PLAIN["colour"])
    frame = next(number for number, piece in enumerate(pieces) if piece[1] == 0xC0)
    pieces[frame] = pieces[frame][:5] + struct.pack(">HH", side, side) + pieces[frame][9:]
    data = b"".join(pieces)
    assert plain_jpeg_size(data) == (side, side)
    with pytest.raises(ImageError, match="claims") as quick:
        read_header(data, max_pixels=limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "plain_jpeg_size", lambda data: None)
        with pytest.raises(ImageError) as slow:
            read_header(data, max_pixels=limit)
    assert str(quick.value) == str(slow.value)
