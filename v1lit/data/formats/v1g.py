"""Import the published v1g row format: parquet rows with image, question, grounded trace and boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from v1lit.data.example import Example, ExampleError, Message
from v1lit.data.example.example import load_json, read_region
from v1lit.data.example.marks import IMAGE_MARKER, escape
from v1lit.data.images import EncodedImage
from v1lit.data.importing.format import Format, Reading
from v1lit.data.importing.images import checked_image
from v1lit.data.importing.rows import PARQUET, Row
from v1lit.grounding.markup import REGION_NAME, find_answers
from v1lit.grounding.region import Region
from v1lit.grounding.trace import parse_trace

COLUMNS = ("id", "image", "conversations", "regions", "image_size")


def read(row: Row, reading: Reading) -> Iterator[Example]:
    """The example of a row."""
    yield row_to_example(row, source=reading.source)


def row_to_example(row: Mapping[str, Any], *, source: str = "v1g") -> Example:
    """One row of the published format -> Example.

    The human turn becomes the user's message, the gpt turn the assistant's; both keep their words as they
    are. The image stands where the human turn begins, so that any further `<image>` is somebody's word.
    Source: jun297/v1, dataset.py at 5ea4620, lines 118-151.

    Raises ExampleError with the first defect as `.reason`.
    """
    id = row["id"]
    try:
        if id is None or id == "":
            raise ValueError("the row has no id")
        if not isinstance(id, str):
            raise ValueError(f"the id is {id!r}, of type {type(id).__name__}; an id is text")
        human, gpt = _turns(row["conversations"])
        regions = _regions(row["regions"])
        _check_names(human + gpt, regions)
        image = _image(row["image"], row["image_size"])
        answers = find_answers(gpt)
        example = Example(
            id=id,
            images=(image,),
            messages=(
                Message("user", IMAGE_MARKER + escape(human.removeprefix(IMAGE_MARKER), keep_regions=True)),
                Message("assistant", escape(gpt, keep_regions=True)),
            ),
            regions=regions,
            answer=answers[-1].strip() if answers else None,
            source=source,
        )
        _check_calls(example, gpt)
    except ExampleError:
        raise
    except ValueError as error:
        raise ExampleError(str(id), str(error)) from error
    return example


def _turns(conversations: object) -> tuple[str, str]:
    if not isinstance(conversations, list) or not all(isinstance(turn, dict) for turn in conversations):
        raise ValueError(f"conversations must be a list of turns, not {conversations!r:.60}")
    if len(conversations) != 2:
        raise ValueError(f"there are {len(conversations)} turns instead of two (human, gpt)")
    speakers = [turn.get("from") for turn in conversations]
    if speakers != ["human", "gpt"]:
        raise ValueError(
            f"the turns are from {speakers[0]!r} and {speakers[1]!r} instead of 'human' and 'gpt'"
        )
    human, gpt = (turn.get("value") for turn in conversations)
    if not isinstance(human, str) or not human.startswith(f"{IMAGE_MARKER}\n"):
        raise ValueError(
            f"the human turn does not begin with {IMAGE_MARKER} and a new line, but with {human!r:.40}"
        )
    if not isinstance(gpt, str) or not gpt.strip():
        raise ValueError("the gpt turn has no text")
    return human, gpt


def _regions(text: object) -> dict[str, Region]:
    if text is None:
        raise ValueError("regions is missing; it must be a JSON object as text")
    if not isinstance(text, str):
        raise ValueError(f"regions is of type {type(text).__name__}; it must be a JSON object as text")
    try:
        regions = load_json(text, allow_nan=True)  # Region refuses it, naming the region.
    except ValueError as error:
        raise ValueError(f"regions cannot be read: {error}") from error
    if not isinstance(regions, dict):
        raise ValueError(f"regions must be a JSON object, not {type(regions).__name__}")
    return {name: read_region(name, value) for name, value in regions.items()}


def _check_names(text: str, regions: Mapping[str, Region]) -> None:
    for name in REGION_NAME.findall(text):
        if name not in regions:
            names = ", ".join(regions) or "none"
            raise ValueError(f"the text names {name}, but no such region is given; given: {names}")


def _image(value: object, image_size: object) -> EncodedImage:
    data = value.get("bytes") if isinstance(value, dict) else None
    if not isinstance(data, bytes):
        path = value.get("path") if isinstance(value, dict) else None
        hint = "" if path is None else f"; its path {path!r} is not followed"
        raise ValueError(f"the image is missing (no bytes){hint}")
    image = checked_image(data)
    if not isinstance(image_size, list):
        kind = type(image_size).__name__
        raise ValueError(
            f"image_size is {image_size!r:.60}, of type {kind}; it must be a list of width and height"
        )
    if tuple(image_size) != image.size:
        raise ValueError(
            f"image_size says {image_size}, but the image is displayed with {list(image.size)} pixels"
        )
    return image


def _check_calls(example: Example, gpt: str) -> None:
    """Regions are taught where calls name them, so one that is named elsewhere only would be lost."""
    parsed = parse_trace(gpt)
    called = {target.region for call in parsed.trace.calls for target in call.objects}
    for name in example.regions:
        if name not in called:
            reason = f"{name} is named outside of any well-formed detect(...) call only"
            for problem in parsed.problems[:1]:
                reason += f"; {problem.reason}: {gpt[problem.start : problem.end]!r:.80}"
            raise ExampleError(example.id, reason)


FORMAT = Format(
    name="v1g",
    about="the published v1g parquet: image, conversations with a trace, regions",
    read=read,
    rules=2,
    suffixes=(PARQUET,),
    columns=COLUMNS,
    required=COLUMNS,
)
