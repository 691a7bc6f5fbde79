"""PixMo-points' rows: a label and the points of everything that it names; the images are files of their own.

An image is found below the folder of images by its SHA-256, as `SHA256` or `SHA256.jpg` (.jpeg, .png, .webp),
or stands in the row as `image`. Points are hundredths of its width and height, although the data set's card
speaks of pixels. Source: allenai/pixmo-points; point_scale=100 in allenai/molmo, olmo/data/pixmo_datasets.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from v1lit.data.example import Example
from v1lit.data.images import EncodedImage
from v1lit.data.importing.box_format import BoxFormat
from v1lit.data.importing.format import Format, Reading
from v1lit.data.importing.found import find_or_count
from v1lit.data.importing.rows import Row

ENDINGS = ("", ".jpg", ".jpeg", ".png", ".webp")


def read(row: Row, reading: Reading) -> Iterator[Example]:
    """The example of a row: it finds or counts what the label names."""
    label, points = row.get("label"), row.get("points")
    if not isinstance(label, str):
        raise ValueError(f"the label is {label!r:.40}")
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        raise ValueError(f"points must be a list of objects with x and y, not {points!r:.60}")
    image = _image(row, reading)
    id = reading.id(row.get("image_sha256"))
    places = [reading.region((point.get("x"), point.get("y")), [image]) for point in points]
    yield find_or_count(id=id, image=image, label=label, regions=places, source=reading.source)


def _image(row: Row, reading: Reading) -> EncodedImage:
    if row.get("image") is not None:
        return reading.image(row["image"])
    name = row.get("image_sha256")
    if not isinstance(name, str) or not re.fullmatch(r"[0-9a-f]{64}", name):
        raise ValueError(f"image_sha256 is {name!r:.80}, no SHA-256 in hexadecimal digits")
    for ending in ENDINGS:
        if (reading.images.root / f"{name}{ending}").is_file():
            image = reading.image(f"{name}{ending}")
            if (found := hashlib.sha256(image.data).hexdigest()) != name:
                raise ValueError(f"the image {name}{ending} has changed: its SHA-256 is {found}")
            return image
    raise ValueError(
        f"there is no image {name} (.jpg, .png, ...) in {reading.images.root}; download it first"
    )


FORMAT = Format(
    name="pixmo_points",
    about="PixMo-points: label and points; images by their SHA-256 in --images",
    read=read,
    boxes=BoxFormat("0-100", "point"),
)
