"""The size of a JPEG from its bytes alone, where nothing about the file is unusual.

Pillow's own reading of a header takes ten times as long, a large part of what reading an example costs.
"""

from __future__ import annotations

from struct import Struct

MAX_SEGMENTS = 64
_SEGMENT = Struct(">HH")
_FRAME = Struct(">BHHB")

_FRAMES = (0xFFC0, 0xFFC1, 0xFFC2)  # Baseline, extended, progressive.
_SKIPPED = (0xFFC4, 0xFFDD, 0xFFFE)  # Huffman tables, restart interval, comment.
_TABLES, _SCAN, _JFIF, _ICC, _ADOBE = 0xFFDB, 0xFFDA, 0xFFE0, 0xFFE2, 0xFFEE


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that Pillow is known to open with this size and no orientation, or None.

    None says nothing about the file: it may have Exif, bytes between its segments, or be no JPEG at all.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    size, start = None, 2
    for _ in range(MAX_SEGMENTS):
        if start + 4 > len(data):
            return None
        marker, length = _SEGMENT.unpack_from(data, start)
        content, start = start + 4, start + 2 + length
        if length < 2 or start > len(data):
            return None
        if marker == _SCAN:
            return size
        if marker in _FRAMES:
            if (size := _frame_size(data[content:start])) is None:
                return None
        elif marker not in _SKIPPED and not _is_harmless(marker, data[content:start]):
            return None
    return None


def _frame_size(content: bytes) -> tuple[int, int] | None:
    if len(content) < _FRAME.size:
        return None
    bits, height, width, layers = _FRAME.unpack_from(content)
    usual = bits == 8 and layers in (1, 3, 4) and len(content) == _FRAME.size + 3 * layers
    return (width, height) if usual and width and height else None


def _is_harmless(marker: int, content: bytes) -> bool:
    """Whether Pillow accepts the segment, and neither size nor orientation can depend on it."""
    if marker == _TABLES:  # Of bytes, each behind its number.
        return bool(content) and len(content) % 65 == 0 and max(content[::65]) < 16
    if marker in (_JFIF, _ADOBE):
        return len(content) >= 7
    return marker == _ICC and content.startswith(b"ICC_PROFILE\0") and len(content) >= 14
