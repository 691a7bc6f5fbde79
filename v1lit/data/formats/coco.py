"""COCO's annotations, detection and segmentation: all objects of a category in an image, found or counted.

Source of the format: cocodataset.org, Data format; of masks as text: cocodataset/cocoapi, common/maskApi.c.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from v1lit.data.example import Example
from v1lit.data.example.example import load_json
from v1lit.data.images import EncodedImage
from v1lit.data.importing.box_format import BoxFormat
from v1lit.data.importing.find import canonical_split
from v1lit.data.importing.format import Format, Gathered, Reading
from v1lit.data.importing.found import find_or_count
from v1lit.data.importing.rows import LARGEST_JSON, Row
from v1lit.grounding.region import MASK_PIXEL_LIMIT, Region, Size

_NAME = re.compile(r"instances_(([A-Za-z]+)\w*)\.json")


def gather(source: Path) -> Gathered:
    """Rows of a file of annotations, or of `annotations/instances_SPLIT*.json` in a folder.

    Raises ValueError where there are none.
    """
    if source.is_file():
        return Gathered({None: [source]}, lambda split: _rows(source, ""))
    files: dict[str | None, list[Path]] = {}
    for path in sorted(source.glob("annotations/instances_*.json")):
        if match := _NAME.fullmatch(path.name):
            files.setdefault(canonical_split(match[2]), []).append(path)
    if not files:
        raise ValueError(f"{source} holds no annotations/instances_*.json: give a file of annotations")
    return Gathered(files, partial(_rows_of_split, source, files))


def _rows_of_split(source: Path, files: dict[str | None, list[Path]], split: str | None) -> Iterator[Row]:
    for path in files[split]:
        match = _NAME.fullmatch(path.name)
        assert match is not None
        yield from _rows(path, f"{match[1]}/" if (source / match[1]).is_dir() else "")


def _rows(path: Path, folder: str) -> Iterator[Row]:
    """A row for every image and category that it shows, in the order of the images."""
    content = _load(path)
    labels = {category["id"]: category["name"] for category in content["categories"]}
    objects: dict[Any, dict[Any, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for annotation in content["annotations"]:
        objects[annotation["image_id"]][annotation["category_id"]].append(annotation)
    for image in content["images"]:
        for category, things in sorted(objects.get(image["id"], {}).items()):
            yield {
                "id": f"{image['id']}/{category}",
                "image": folder + image["file_name"],
                "size": [image.get("width"), image.get("height")],
                "label": labels.get(category),
                "objects": [
                    {name: annotation.get(name) for name in ("bbox", "segmentation", "iscrowd")}
                    for annotation in things
                ],
            }


def _load(path: Path) -> dict[str, Any]:
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path} has more than {LARGEST_JSON} bytes")
    try:
        content = load_json(path.read_bytes(), allow_nan=True)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    wanted = {"images": "id", "annotations": "image_id", "categories": "name"}
    for name, key in wanted.items():
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(e, dict) and key in e for e in entries):
            raise ValueError(f"{path} is not in COCO's format: {name} must be a list of objects with {key}")
    return content


def read(row: Row, reading: Reading) -> Iterator[Example]:
    """The example of an image and a category."""
    if not isinstance(row["label"], str):
        raise ValueError(f"the category of {row['id']} has no name")
    if any(thing["iscrowd"] for thing in row["objects"]):
        raise ValueError(f"a crowd of {row['label']!r} is marked, whose objects are not known one by one")
    image = reading.image(row["image"])
    if all(row["size"]) and tuple(row["size"]) != image.size:
        raise ValueError(
            f"the annotations say {row['size']}, but the image is displayed with {list(image.size)} pixels"
        )
    regions = [_region(thing, image, reading) for thing in row["objects"]]
    yield find_or_count(id=row["id"], image=image, label=row["label"], regions=regions, source=reading.source)


def _region(thing: Row, image: EncodedImage, reading: Reading) -> Region:
    """Of the segmentation where there is one, else of the box."""
    outline = thing["segmentation"]
    if isinstance(outline, dict):
        return Region.from_mask(decode_runs(outline, image.size))
    if outline:
        return _of_polygons(outline, image.size)
    return reading.region(thing["bbox"], [image])


def _of_polygons(outline: Any, size: Size) -> Region:
    """The union of polygons, each a flat list x, y, x, y, ..."""
    if not isinstance(outline, list) or not all(
        isinstance(flat, list) and len(flat) % 2 == 0 for flat in outline
    ):
        raise ValueError(f"a segmentation is a list of lists x, y, x, y, ..., not {outline!r:.60}")
    polygons = [Region.from_polygon([flat[i : i + 2] for i in range(0, len(flat), 2)]) for flat in outline]
    if len(polygons) == 1:
        return polygons[0].clamped(size, 1.0)
    return Region.from_mask(np.logical_or.reduce([polygon.mask(size) for polygon in polygons]))


def decode_runs(outline: dict[str, Any], size: Size) -> npt.NDArray[np.bool_]:
    """`[height, width]`: the mask of run lengths, column by column, outside first; as numbers or as text.

    Raises ValueError for runs that do not fill the image.
    """
    width, height = size
    if outline.get("size") != [height, width] or width * height > MASK_PIXEL_LIMIT:
        raise ValueError(f"a mask says {outline.get('size')} (height, width), the image is {width}x{height}")
    counts = outline.get("counts")
    runs = _from_text(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError("the runs of a mask are a list of numbers from 0 on")
    if sum(runs) != width * height:
        raise ValueError(f"the runs of a mask do not add up to the {width * height} pixels of the image")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def _from_text(text: str) -> list[int]:
    """Five bits to a character, the lowest first; from the third run on, differences to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            raise ValueError("the text of a mask's runs cannot be read")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


FORMAT = Format(
    name="coco",
    about="COCO's instances json: objects of a category in an image, found or counted",
    read=read,
    boxes=BoxFormat("pixels", "xywh"),
    gather=gather,
)
