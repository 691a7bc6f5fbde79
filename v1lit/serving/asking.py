"""A request for a chat completion, read from JSON in the form that OpenAI's clients send."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from v1lit.data.encode.given_regions import RegionError
from v1lit.data.example import Message
from v1lit.data.example.marks import IMAGE_MARKER, escape
from v1lit.errors import OptionError, did_you_mean
from v1lit.grounding.region import Region
from v1lit.inference.prompt import AboutRegions
from v1lit.serving.choice import Sampling
from v1lit.serving.limits import ServerLimits
from v1lit.steering import Steering

IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity")
"""What clients send that changes nothing here."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, 0.0, None),
    "presence_penalty": (0, 0.0, None),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
}
"""Fields that are not offered, with the values that ask for nothing."""
STEER = tuple(field.name for field in fields(Steering))


class AskError(ValueError):
    """A field of a request has a value that it cannot have.

    Args:
        field: its path in the JSON, such as `messages[0].content`.
        why: what is wrong, and what is allowed.
    """

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field


@dataclass(frozen=True)
class Ask:
    """What somebody asks."""

    model: str
    messages: tuple[Message, ...]
    images: tuple[str, ...]
    """Where each `<image>` of the messages is: a data URL, or an address."""
    max_tokens: int
    sampling: Sampling
    steering: Steering
    stop: tuple[str, ...]
    """Texts before which the answer ends."""
    choices: int
    stream: bool
    usage: bool
    """Whether a stream ends with the numbers of tokens."""
    regions: Mapping[str, Region] = field(default_factory=dict)
    """What names of regions in the messages stand for."""
    coordinates: bool = False
    """Whether their boxes are written too; see `AboutRegions`."""


def read_ask(body: Any, limits: ServerLimits) -> Ask:
    """Read a parsed body. Raises AskError for whatever cannot be done."""
    if not isinstance(body, dict):
        raise AskError("body", "it is a JSON object")
    _check_fields(body)
    regions = _regions(body.get("regions"))
    messages, images = _messages(body.get("messages"), limits, bool(regions))
    most = _number(body, "max_completion_tokens", None, 1, limits.new_tokens, whole=True)
    if most is None:
        most = _number(body, "max_tokens", limits.new_tokens, 1, limits.new_tokens, whole=True)
    temperature = _number(body, "temperature", 0.0, 0, 2)
    sampling = Sampling(
        temperature=float(temperature),
        top_p=float(_number(body, "top_p", 1.0, 1e-6, 1)),
        top_k=_number(body, "top_k", None, 1, 10**6, whole=True),
        seed=_number(body, "seed", None, -(2**63), 2**63 - 1, whole=True),
    )
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise AskError("stream_options", 'it is an object such as {"include_usage": true}')
    return Ask(
        model=_text(body, "model"),
        messages=messages,
        images=images,
        max_tokens=int(most),
        sampling=sampling,
        steering=_steering(body.get("steer")),
        stop=_stop(body.get("stop")),
        choices=int(_number(body, "n", 1, 1, limits.choices, whole=True)),
        stream=_flag(body, "stream"),
        usage=_flag(options, "include_usage"),
        regions=regions,
        coordinates=_flag(body, "region_coordinates"),
    )


def _check_fields(body: dict[str, Any]) -> None:
    known = {
        *(
            "model",
            "messages",
            "max_tokens",
            "max_completion_tokens",
            "temperature",
            "top_p",
            "top_k",
            "seed",
        ),
        *("stop", "n", "stream", "stream_options", "steer", "regions", "region_coordinates"),
    }
    for name, value in body.items():
        if name in NEUTRAL:
            if value not in NEUTRAL[name]:
                raise AskError(name, "this server does not offer it")
        elif name not in known and name not in IGNORED:
            raise AskError(name, f"there is no such field{did_you_mean(name, known)}")


def _messages(
    given: Any, limits: ServerLimits, with_regions: bool
) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    if not isinstance(given, list) or not given:
        raise AskError("messages", "it is a list of messages that ends with one of the user's")
    images: list[str] = []
    messages: list[Message] = []
    for number, message in enumerate(given):
        at = f"messages[{number}]"
        if not isinstance(message, dict):
            raise AskError(at, "it is an object with role and content")
        role = {"developer": "system"}.get(str(message.get("role")), str(message.get("role")))
        if role not in ("system", "user", "assistant") or (role == "system" and number):
            raise AskError(f"{at}.role", "one system message may come first, then user and assistant in turn")
        shown = images if role == "user" else None
        content = _content(message.get("content"), f"{at}.content", shown, with_regions)
        if messages and messages[-1].role == role:
            raise AskError(f"{at}.role", f"two messages of role {role!r} follow each other; join them")
        if role == "assistant" and (not messages or messages[-1].role != "user"):
            raise AskError(f"{at}.role", "the assistant answers a user")
        messages.append(Message(role, content))
    if messages[-1].role != "user":
        raise AskError("messages", "the last one is the user's")
    if len(images) > limits.images:
        raise AskError("messages", f"there are {len(images)} images, and at most {limits.images} are taken")
    return tuple(messages), tuple(images)


def _content(given: Any, at: str, images: list[str] | None, with_regions: bool) -> str:
    """The words of a message; `images` are those so far, of a user, who may show more."""
    if isinstance(given, str):
        return escape(given, keep_regions=with_regions)
    if not isinstance(given, list) or not given:
        raise AskError(at, "it is a text, or a list of parts")
    words = []
    for number, part in enumerate(given):
        where = f"{at}[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            words.append(escape(part["text"], keep_regions=with_regions))
        elif kind == "image_url" and images is not None:
            image = part.get("image_url")
            address = image.get("url") if isinstance(image, dict) else image
            if not isinstance(address, str):
                raise AskError(f"{where}.image_url", 'give {"url": "data:image/png;base64,..."}')
            images.append(address)
            words.append(f"{IMAGE_MARKER}\n")
        else:
            allowed = "text or image_url" if images is not None else "text (images come from the user)"
            raise AskError(where, f"a part is of type {allowed}")
    return "".join(words)


def _regions(given: Any) -> dict[str, Region]:
    """By name; of a list they are `<|region_1|>`, `<|region_2|>`, ..."""
    if given is None:
        return {}
    if not isinstance(given, list | dict) or (isinstance(given, list) and _are_numbers(given)):
        raise AskError("regions", "it is a list of boxes [x1, y1, x2, y2] or other regions, or an object")
    at: Any = "regions"
    named: Any = {}
    try:
        keys = range(len(given)) if isinstance(given, list) else given
        for key in keys:
            at = f"regions[{key!r}]"
            named[key] = Region.from_json(given[key])
        return AboutRegions("", list(named.values()) if isinstance(given, list) else named).named
    except RegionError as error:
        raise AskError("regions", str(error)) from None
    except ValueError as error:
        raise AskError(at, str(error)) from None


def _steering(given: Any) -> Steering:
    if given is None:
        return Steering()
    if not isinstance(given, dict):
        raise AskError("steer", f"it is an object of these options: {', '.join(STEER)}")
    for name in given:
        if name not in STEER:
            raise AskError(f"steer.{name}", f"there is no such option{did_you_mean(name, STEER)}")
    try:
        return Steering(**{name: _checked(name, value) for name, value in given.items()})
    except OptionError as error:
        raise AskError(f"steer.{error.field}", f"{error.given!r}; {error.why}") from None


_IS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("points", "connected", "distinct", "once", "grammar"),
        (lambda v: isinstance(v, bool), "true or false"),
    ),
    **dict.fromkeys(
        ("max_looks", "max_pointers", "look_every"), (lambda v: type(v) is int or v is None, "a whole number")
    ),
    **dict.fromkeys(
        ("inside", "outside"),
        (lambda v: v is None or _are_places(v), "a list of boxes [x1, y1, x2, y2] in pixels, or regions"),
    ),
    "queries": (lambda v: isinstance(v, list) and all(isinstance(one, str) for one in v), "a list of texts"),
}


def _checked(name: str, value: Any) -> Any:
    fits, what = _IS[name]
    if not fits(value):
        raise AskError(f"steer.{name}", f"it is {what}")
    if name not in ("inside", "outside") or value is None:
        return value
    try:
        return [Region.from_json(place) for place in value]
    except ValueError as error:
        raise AskError(f"steer.{name}", str(error)) from None


def _are_places(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(place, list | dict) for place in value)


def _are_numbers(value: list[Any]) -> bool:
    return any(isinstance(one, int | float) for one in value)


def _stop(given: Any) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else given or []
    fine = isinstance(texts, list) and len(texts) <= 4
    if not fine or not all(isinstance(text, str) and text for text in texts):
        raise AskError("stop", "it is a text, or a list of up to 4")
    return tuple(texts)


def _number(
    body: Mapping[str, Any], name: str, default: Any, least: float, most: float, whole: bool = False
) -> Any:
    value = body.get(name)
    if value is None:
        return default
    fits = type(value) is int or (type(value) is float and not whole)
    if not fits or not least <= value <= most:
        raise AskError(name, f"it is a {'whole ' if whole else ''}number from {least:g} to {most:g}")
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value not in (None, True, False):
        raise AskError(name, "it is true or false")
    return bool(value)


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise AskError(name, "it is a text")
    return value
