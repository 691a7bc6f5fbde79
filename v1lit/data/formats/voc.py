"""Pascal VOC's XML, a file for each image: for every kind of object all that are there, found or counted.

Its boxes count pixels from 1, and the last pixel belongs to the box. Source: Everingham et al., The PASCAL
Visual Object Classes Challenge, Development Kit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from v1lit.data.example import Example
from v1lit.data.importing.find import canonical_split
from v1lit.data.importing.format import Format, Gathered, Reading
from v1lit.data.importing.found import find_or_count
from v1lit.data.importing.rows import Row
from v1lit.errors import one_line

LARGEST_XML = 2**20
"""Bytes of the annotations of one image."""


def gather(source: Path) -> Gathered:
    """Rows of `Annotations/*.xml`, split as `ImageSets/Main/{train,val,test}.txt` says, or of plain XML.

    Raises ValueError where there are none.
    """
    folder = source / "Annotations" if (source / "Annotations").is_dir() else source
    images = "JPEGImages/" if (source / "JPEGImages").is_dir() else ""
    everything = {path.stem: path for path in sorted(folder.glob("*.xml"))}
    if not everything:
        raise ValueError(f"{source} holds no XML, neither in Annotations/ nor itself")
    files: dict[str | None, list[Path]] = {}
    for name in ("train", "val", "test"):
        listed = source / "ImageSets" / "Main" / f"{name}.txt"
        if listed.is_file():
            files[canonical_split(name)] = [_listed(listed, line, everything) for line in _lines(listed)]
    files = files or {None: list(everything.values())}
    return Gathered(files, partial(_rows, files, images))


def _lines(path: Path) -> list[str]:
    return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _listed(path: Path, name: str, everything: dict[str, Path]) -> Path:
    if name not in everything:
        raise ValueError(f"{path} lists {name}, of which there is no XML")
    return everything[name]


def _rows(files: dict[str | None, list[Path]], images: str, split: str | None) -> Iterator[Row]:
    for path in files[split]:
        try:
            name, objects = _parse(path)
        except ValueError as error:
            yield {"id": path.stem, "bad": f"{path.name}: {error}"}
            continue
        for label, boxes in objects.items():
            yield {"id": f"{path.stem}/{label}", "image": images + name, "label": label, "boxes": boxes}


def _parse(path: Path) -> tuple[str, dict[str, list[list[float]]]]:
    """Name of the image, and by label its boxes as the file has them."""
    data = path.read_bytes()[: LARGEST_XML + 1]
    if len(data) > LARGEST_XML or b"<!" in data.replace(b"<!--", b""):  # Entities can grow without end.
        raise ValueError(f"more than {LARGEST_XML} bytes, or declarations (<!...), which are not read")
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError(f"no XML ({one_line(error)})") from error
    objects: dict[str, list[list[float]]] = defaultdict(list)
    for thing in root.iter("object"):
        corners = [thing.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
        try:
            box = [float(corner or "") for corner in corners]
        except ValueError:
            raise ValueError(f"an object has the bndbox {corners}") from None
        objects[(thing.findtext("name") or "").strip()].append(box)
    return root.findtext("filename") or f"{path.stem}.jpg", dict(objects)


def read(row: Row, reading: Reading) -> Iterator[Example]:
    """The example of an image and a kind of object."""
    if "bad" in row:
        raise ValueError(row["bad"])
    image = reading.image(row["image"])
    regions = [reading.region((x1 - 1, y1 - 1, x2, y2), [image]) for x1, y1, x2, y2 in row["boxes"]]
    yield find_or_count(id=row["id"], image=image, label=row["label"], regions=regions, source=reading.source)


FORMAT = Format(
    name="voc",
    about="Pascal VOC's XML: objects of a kind in an image, found or counted",
    read=read,
    gather=gather,
)
