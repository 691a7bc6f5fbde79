"""`Example`: one validated training sample, and its form in a shard: a JSON member and one per image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from unicodedata import normalize
from urllib.parse import quote, unquote

from v1lit.data.example.marks import IMAGE_MARKER, escape
from v1lit.data.images import EXTENSIONS, EncodedImage, ImageError, read_header
from v1lit.grounding.markup import REGION_NAME
from v1lit.grounding.region import Region

EDGE_TOLERANCE = 0.01
"""Pixels by which a region may reach out of its image and is moved back onto the edge: fractions times width,
in single precision, come out so. No patch is that small."""

ROLES = ("system", "user", "assistant")


class ExampleError(ValueError):
    """An example that breaks a rule: `id` says which, as far as it is known, `reason` in a sentence what."""

    def __init__(self, id: str, reason: str) -> None:
        super().__init__(f"example {id!r}: {reason}")
        self.id = id
        self.reason = reason

    def __reduce__(self) -> tuple[type[ExampleError], tuple[str, str]]:
        return type(self), (self.id, self.reason)  # Worker processes send it through a pipe.


@dataclass(frozen=True)
class Message:
    """One turn: `role` is "system", "user" or "assistant".

    `<image>` in `content` marks the place of an image, a name such as `<|region_1|>` that of a region.
    Somebody's words that may hold such characters are written with `v1lit.data.example.marks.escape`.
    """

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample. Making one checks it, so that everything behind can rely on the rules of `validate`."""

    id: str
    """Unique within a dataset."""
    images: tuple[EncodedImage, ...] = ()
    """The image files, in the order of their `<image>` markers."""
    messages: tuple[Message, ...]
    """An optional system message, then user and assistant in turn, an assistant last."""
    regions: Mapping[str, Region] = field(default_factory=dict)
    """A name such as `<|region_1|>` -> what it stands for, in pixels of its image as displayed."""
    answer: str | None = None
    """The short final answer, where there is one."""
    source: str = ""
    """Where it comes from, for people to read."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", tuple(self.images))
        object.__setattr__(self, "messages", tuple(self.messages))
        regions = {name: self._on_image(region) for name, region in dict(self.regions).items()}
        object.__setattr__(self, "regions", regions)
        self.validate()

    def _on_image(self, region: Region) -> Region:
        """The region without what rounding added at the edge of its image."""
        if region.image < len(self.images) and isinstance(image := self.images[region.image], EncodedImage):
            return region.clamped(image.size, EDGE_TOLERANCE)
        return region

    def validate(self) -> None:
        """Check all rules. Raises ExampleError, which names the first one that is broken."""
        for rule in (_problem_of_text, _problem_of_turns, _problem_of_images, _problem_of_regions):
            if reason := rule(self):
                raise ExampleError(self.id if isinstance(self.id, str) else repr(self.id), reason)

    @property
    def key(self) -> str:
        """Name of the example in a shard, as of `key_of`."""
        return key_of(self.id)

    def to_members(self) -> dict[str, bytes]:
        """Content of the members by kind: "json", then "jpg" (one image) or "0.jpg", "1.png" (several)."""
        record = {
            "id": self.id,
            "messages": [{"role": message.role, "content": message.content} for message in self.messages],
            "regions": {name: region.to_json() for name, region in self.regions.items()},
            "answer": self.answer,
            "source": self.source,
            "images": [{"file_ext": image.format, "size": list(image.size)} for image in self.images],
        }
        members = {"json": json.dumps(record, ensure_ascii=False, allow_nan=False).encode()}
        for index, image in enumerate(self.images):
            members[_member_name(index, len(self.images), image.format)] = image.data
        return members

    @classmethod
    def from_members(cls, key: str, members: Mapping[str, bytes]) -> Example:
        """The inverse of `to_members`. Nothing in `members` is trusted.

        Raises ExampleError for members that are missing, superfluous, malformed or contradict each other.
        """
        try:
            return _read_members(key, members)
        except ExampleError:
            raise
        except ValueError as error:
            raise ExampleError(unquote(key), str(error)) from error


def key_of(id: str) -> str:
    """Name of the example in a shard: its id, all but letters, digits, "_", "-" and "~" percent-encoded.

    A dot would end the key where WebDataset splits member names, a slash would make a folder.
    """
    return quote(id, safe="").replace(".", "%2E")


def _is_called(id: str, key: str) -> bool:
    """Whether an example may have this name in a shard: that of `key_of`, or its id itself, in any folder."""
    if key_of(id) == key:
        return True
    names = {key, key.rpartition("/")[2]}
    names |= {unquote(name) for name in names}
    return normalize("NFC", id) in {normalize("NFC", name) for name in names}  # A Mac writes e and accent.


def load_json(text: str | bytes, *, allow_nan: bool = False) -> Any:
    """Parse JSON strictly.

    Raises ValueError for no JSON, NaN or infinity, a name given twice in one object, and nesting without end.
    """
    decoder = _WITH_NAN if allow_nan else _STRICT
    try:
        return json.loads(text, cls=lambda: decoder)  # type: ignore[arg-type]
    except RecursionError:
        raise ValueError("not usable JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except UnicodeDecodeError:
        raise ValueError("not JSON: not UTF-8 text") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a usable number")


def _object_of_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        double = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the name {double!r} is given twice")
    return names


# Made once: json.loads would make one for every text that it is asked to read in another way than usual.
_STRICT = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_object_of_unique_names)
_WITH_NAN = json.JSONDecoder(parse_constant=float, object_pairs_hook=_object_of_unique_names)


# --- rules ---


def _problem_of_text(example: Example) -> str | None:
    if not all(isinstance(message, Message) for message in example.messages):
        return "messages must be Message objects"
    texts: dict[str, object] = {"the id": example.id, "the source": example.source}
    for number, message in enumerate(example.messages, start=1):
        texts[f"the text of message {number}"] = message.content
    if example.answer is not None:
        texts["the answer"] = example.answer
    for what, text in texts.items():
        if not isinstance(text, str):
            return f"{what} is {text!r} instead of text"
        if not _is_unicode(text):
            return f"{what} holds half of a surrogate pair, which is no character"
    return None if example.id else "the id is empty"


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _problem_of_turns(example: Example) -> str | None:
    roles = [message.role for message in example.messages]
    for role in roles:
        if role not in ROLES:
            return f"unknown role {role!r}, allowed are {', '.join(ROLES)}"
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        given = ", ".join(roles) or "none"
        return f"turns must be user and assistant alternating, ending with the assistant; given: {given}"
    for number, message in enumerate(example.messages, start=1):
        if message.role == "assistant" and not message.content.strip():
            return f"the assistant's text (message {number}) is empty"
    return None


def _problem_of_images(example: Example) -> str | None:
    if not all(isinstance(image, EncodedImage) for image in example.images):
        return "images must be EncodedImage objects (see read_header)"
    markers = sum(message.content.count(IMAGE_MARKER) for message in example.messages)
    if markers != len(example.images):
        return (
            f"the messages hold {markers} {IMAGE_MARKER} markers, but there are {len(example.images)} images"
            f"; where the word is meant, write {escape(IMAGE_MARKER)}"
        )
    return None


def _problem_of_regions(example: Example) -> str | None:
    written = dict.fromkeys(
        name for message in example.messages for name in REGION_NAME.findall(message.content)
    )
    for name in written:
        if name not in example.regions:
            return (
                f"the text names {name}, but no such region is given; where the word is meant, write "
                f"{escape(name)}"
            )
    for name, region in example.regions.items():
        if name not in written:
            if not REGION_NAME.fullmatch(name):
                return f"the region name {name!r} is not of the form <|region_1|>"
            return f"the region {name} is given, but the text never names it"
        if not 0 <= region.image < len(example.images):
            count = len(example.images)
            return f"{name} lies in image {region.image}, counted from 0, but there are {count} images"
        width, height = example.images[region.image].size
        if not region.within((width, height)):
            if region.kind == "mask":
                rows, columns = region.data.shape
                is_so = f"{width} x {height} pixels"
                return f"the mask of {name} has {columns} x {rows} pixels, but its image {is_so}"
            bounds = list(region.box)
            return f"{name} with bounds {bounds} reaches outside of its image of {width} x {height} pixels"
    return None


# --- shard members ---


def _member_name(index: int, count: int, extension: str) -> str:
    return extension if count == 1 else f"{index}.{extension}"


def _read_members(key: str, members: Mapping[str, bytes]) -> Example:
    if "json" not in members:
        raise ValueError("the json member is missing")
    record = _object("the json member", load_json(members["json"]))
    id = record.get("id")
    if not isinstance(id, str) or not _is_unicode(id) or not _is_called(id, key):
        raise ValueError(f"the json member has the id {id!r}, but the shard member is called {key!r}")
    messages = _list("messages", record.get("messages"))
    regions = _object("regions", record.get("regions", {}))
    return Example(
        id=id,
        images=_read_images(_list("images", record.get("images", [])), members),
        messages=tuple(_message(_object("a message", value)) for value in messages),
        regions={name: read_region(name, value) for name, value in regions.items()},
        answer=record.get("answer"),
        source=record.get("source", ""),
    )


def _message(value: dict[str, Any]) -> Message:
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(f"role and content of a message must be text, given {role!r} and {content!r:.40}")
    return Message(role, content)


def read_region(name: str, value: object) -> Region:
    """`Region.from_json`, with the name of the region in the error."""
    try:
        return Region.from_json(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _read_images(records: list[Any], members: Mapping[str, bytes]) -> tuple[EncodedImage, ...]:
    images = []
    expected = {"json"}
    for index, record in enumerate(records):
        record = _object(f"image {index}", record)
        extension = record.get("file_ext")
        extension = extension.lower() if isinstance(extension, str) else extension
        if not isinstance(extension, str) or extension not in EXTENSIONS:
            raise ValueError(f"image {index} has file_ext {extension!r}, allowed are {', '.join(EXTENSIONS)}")
        name = _member_name(index, len(records), extension)
        if name not in members:
            raise ValueError(f"the member {name!r} of image {index} is missing")
        expected.add(name)
        try:
            image = read_header(members[name])
        except ImageError as error:
            raise ValueError(f"image {index}: {error}") from error
        if record.get("size") != list(image.size):
            raise ValueError(
                f"image {index} is said to be {record.get('size')!r} pixels but is {list(image.size)}"
            )
        images.append(image)
    superfluous = sorted(set(members) - expected)
    if superfluous:
        raise ValueError(f"members that the json member does not mention: {', '.join(superfluous)}")
    return tuple(images)


def _object(what: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object, not {type(value).__name__}")
    return value


def _list(what: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} must be a JSON list, not {type(value).__name__}")
    return value
