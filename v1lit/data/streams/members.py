"""Samples whose members have names of their own -> examples, by a mapping of a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from v1lit.data.example import Example, ExampleError, Message
from v1lit.data.example.example import load_json
from v1lit.data.example.marks import IMAGE_MARKER
from v1lit.data.images import EXTENSIONS, EncodedImage, ImageError, read_header
from v1lit.data.shards import MAX_JSON_BYTES
from v1lit.errors import OptionError, name_allowed
from v1lit.grounding.markup import REGION_NAME, object_name, region_name
from v1lit.grounding.region import Region
from v1lit.grounding.trace import Detect, DetectedObject, Trace, format_trace

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""Names of roles in conversations -> ours."""
_ROUNDING = 1.0
"""Pixels by which a box may reach outside of its image, and is cut: rounded, or normalised, numbers do."""
_KIND = re.compile(r"[\w-]+(\.[\w-]+)*")

Units = Literal["pixels", "0..1", "0..1000"]
BoxFormat = Literal["xyxy", "xywh", "cxcywh"]


class MemberError(ValueError):
    """A member that a sample lacks; the text is a sentence that says which."""


@dataclass(frozen=True)
class MemberPath:
    """Where something stands in a sample: `jpg`, `png;jpg` (the first one there), `json:objects.*.bbox`."""

    kinds: tuple[str, ...]
    keys: tuple[str, ...] = ()
    """Names inside of a JSON member, `*` for each of a list."""

    @classmethod
    def read(cls, text: object, option: str) -> MemberPath:
        """Parse a path of a recipe. Raises ValueError naming the option."""
        kinds, colon, keys = str(text).partition(":")
        path = cls(tuple(kinds.lower().split(";")), tuple(keys.split(".")) if colon else ())
        if not isinstance(text, str) or not all(map(_KIND.fullmatch, path.kinds)) or "" in path.keys:
            why = (
                "give the extension of a member (jpg, or png;jpg for the first one there), or json:key for a "
                "key of a JSON member"
            )
            raise OptionError(option, text, why)
        return path

    def __str__(self) -> str:
        return " or ".join(self.kinds) + (f", key {'.'.join(self.keys)}" if self.keys else "")

    def content(self, members: Mapping[str, bytes]) -> tuple[str, bytes]:
        """Kind and bytes of the member. Raises MemberError."""
        for kind in self.kinds:
            if kind in members:
                return kind, members[kind]
        there = ", ".join(sorted(members)) or "none"
        raise MemberError(f"there is no member {' or '.join(self.kinds)}; there are: {there}")

    def value(self, members: Mapping[str, bytes]) -> Any:
        """What stands there: a part of a JSON member, or a member's text. Raises ValueError."""
        kind, data = self.content(members)
        if len(data) > MAX_JSON_BYTES:
            raise MemberError(f"the member {kind} has {len(data)} bytes, the limit is {MAX_JSON_BYTES}")
        if self.keys or kind.rpartition(".")[2] == "json":
            return _inside(load_json(data), self.keys, kind)
        try:
            return data.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"the member {kind} is not UTF-8 text") from error

    def text(self, members: Mapping[str, bytes]) -> str:
        """What stands there as text; ValueError where it is neither text nor a number."""
        value = self.value(members)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise ValueError(f"{self} is {type(value).__name__} instead of text")
        return value


def _inside(value: Any, keys: Sequence[str], where: str) -> Any:
    for depth, key in enumerate(keys):
        if key == "*":
            if not isinstance(value, list):
                raise ValueError(f"{where} is {type(value).__name__} instead of a list")
            deeper = keys[depth + 1 :]
            return [_inside(item, deeper, f"{where}.{index}") for index, item in enumerate(value)]
        if not isinstance(value, dict) or key not in value:
            raise ValueError(f"{where} has no key {key!r}")
        value, where = value[key], f"{where}.{key}"
    return value


@dataclass(frozen=True)
class Members:
    """Which member of a sample is what. A conversation, or a reply with or without a question."""

    image: tuple[MemberPath, ...] = (MemberPath(tuple(EXTENSIONS)),)
    """One per image, in their order."""
    conversation: MemberPath | None = None
    """A list of messages with `role` and `content`, or with `from` and `value`."""
    question: MemberPath | None = None
    """What the user says."""
    prompt: str = "Describe the image."
    """What the user says where there is no member for it."""
    reply: MemberPath | None = None
    """What the assistant says: an answer or a caption."""
    answer: MemberPath | None = None
    """The short final answer."""
    boxes: MemberPath | None = None
    """A box, a list of boxes, or boxes by name; the n-th of a list is `<|region_n|>`."""
    box_format: BoxFormat = "xyxy"
    box_units: Units = "pixels"
    query: MemberPath | None = None
    """What the boxes show: the reply then begins with a call that detects them all."""

    @classmethod
    def read(cls, mapping: object, option: str = "data.source.options.members") -> Members:
        """The members that a mapping of a recipe names. Raises ValueError naming the option."""
        if not isinstance(mapping, Mapping):
            raise OptionError(option, mapping, "give a mapping, such as {image: jpg, reply: txt}")
        hints, values = get_type_hints(cls), dict[str, Any]()
        for name, value in mapping.items():
            key = f"{option}.{name}"
            if name not in hints:
                raise OptionError(key, value, f"no such option; {name_allowed(name, hints)}")
            if value is None:
                continue
            allowed = get_args(hints[name])
            if name == "image":
                several = value if isinstance(value, (list, tuple)) else [value] if value else []
                values[name] = tuple(MemberPath.read(image, key) for image in several)
            elif name == "prompt" or name.startswith("box_"):
                if not isinstance(value, str) or (allowed and value not in allowed):
                    raise OptionError(key, value, name_allowed(value, allowed or ["a text"]))
                values[name] = value
            else:
                values[name] = MemberPath.read(value, key)
        members = cls(**values)
        if (members.conversation is None) == (members.reply is None):
            why = (
                "it must name either a conversation (such as json:conversations), or a reply (such as txt) "
                "and perhaps a question"
            )
            raise OptionError(option, dict(mapping), why)
        for name in ("question", "query"):
            if members.conversation is not None and getattr(members, name) is not None:
                why = "it goes with a reply, not with a conversation"
                raise OptionError(f"{option}.{name}", mapping[name], why)
        if members.query is not None and members.boxes is None:
            why = "it says what the boxes show; name the boxes as well"
            raise OptionError(f"{option}.query", mapping["query"], why)
        return members

    def example(self, key: str, members: Mapping[str, bytes]) -> Example:
        """The example of a sample.

        Raises ExampleError naming what is missing, of another form than said, or breaks a rule of `Example`.
        """
        try:
            images = tuple(self._images(members))
            regions = self._regions(members, images)
            return Example(
                id=key,
                images=images,
                messages=tuple(self._messages(members, len(images), list(regions))),
                regions=regions,
                answer=None if self.answer is None else self.answer.text(members),
            )
        except ExampleError:
            raise
        except ValueError as error:
            raise ExampleError(key, str(error)) from error

    def _images(self, members: Mapping[str, bytes]) -> list[EncodedImage]:
        images = []
        for index, path in enumerate(self.image):
            try:
                images.append(read_header(path.content(members)[1]))
            except ImageError as error:
                raise ValueError(f"image {index}: {error}") from error
        return images

    def _messages(self, members: Mapping[str, bytes], images: int, regions: list[str]) -> list[Message]:
        if self.conversation is not None:
            messages = _conversation(self.conversation.value(members))
        else:
            assert self.reply is not None
            question = self.prompt if self.question is None else self.question.text(members)
            reply = self.reply.text(members)
            if self.query is not None:
                objects = (
                    DetectedObject(object_name(n), region) for n, region in enumerate(regions, start=1)
                )
                call = Detect(self.query.text(members), tuple(objects))
                reply = f"{format_trace(Trace((call,)))}\n{reply}"
            messages = [Message("user", question), Message("assistant", reply)]
        if not any(IMAGE_MARKER in message.content for message in messages):
            first = next((turn for turn, message in enumerate(messages) if message.role == "user"), None)
            if first is not None:
                marks = f"{IMAGE_MARKER}\n" * images
                messages[first] = Message("user", marks + messages[first].content)
        return messages

    def _regions(self, members: Mapping[str, bytes], images: Sequence[EncodedImage]) -> dict[str, Region]:
        if self.boxes is None:
            return {}
        value = self.boxes.value(members)
        if not isinstance(value, dict):
            value = [value] if _is_box(value) else value
            if not isinstance(value, list):
                raise ValueError(f"{self.boxes} is {type(value).__name__} instead of a list of boxes")
            value = {region_name(number): box for number, box in enumerate(value, start=1)}
        if not images:
            raise ValueError("there are boxes, but no image")
        return {_region_name(name): self._region(name, box, images[0].size) for name, box in value.items()}

    def _region(self, name: str, box: object, size: tuple[int, int]) -> Region:
        if not _is_box(box):
            raise ValueError(f"the box of {name} is {box!r:.80} instead of four numbers")
        try:
            return Region.from_box(to_pixels(box, self.box_format, self.box_units, size))  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"the box of {name}, {box}: {error}") from error


def to_pixels(
    box: Sequence[float], form: BoxFormat, units: Units, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A box as `(x1, y1, x2, y2)` in pixels of an image of `size` (width, height).

    `form` is corners, corner and size, or centre and size; `units` are pixels, shares of the sides, or
    thousandths of them. What reaches up to one pixel outside is cut.
    """
    a, b, c, d = (float(number) for number in box)
    if form == "xywh":
        a, b, c, d = a, b, a + c, b + d
    elif form == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    (width, height), whole = size, {"pixels": None, "0..1": 1.0, "0..1000": 1000.0}[units]
    across, down = (1.0, 1.0) if whole is None else (width / whole, height / whole)
    return _cut(a * across, width), _cut(b * down, height), _cut(c * across, width), _cut(d * down, height)


def _cut(value: float, side: int) -> float:
    if -_ROUNDING <= value < 0:
        return 0.0
    return float(side) if side < value <= side + _ROUNDING else value


def _is_box(value: object) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 4
        and all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in value)
    )


def _region_name(name: str) -> str:
    """`<|region_1|>` for itself, `region_1` and `1`."""
    return name if REGION_NAME.fullmatch(name) else region_name(name.removeprefix("region_"))


def _conversation(value: object) -> list[Message]:
    if not isinstance(value, list):
        raise ValueError(f"the conversation is {type(value).__name__} instead of a list of messages")
    messages = []
    for number, message in enumerate(value, start=1):
        fields = message if isinstance(message, dict) else {}
        role, content = fields.get("role", fields.get("from")), fields.get("content", fields.get("value"))
        if role not in ROLES or not isinstance(content, str):
            raise ValueError(
                f"message {number} is {message!r:.80}; it needs role and content, or from and value, and a "
                f"role of {', '.join(ROLES)}"
            )
        messages.append(Message(ROLES[role], content))
    return messages
