"""Regions of foreign data as calls within a trace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from v1lit.data.example import Example, Message
from v1lit.data.example.marks import IMAGE_MARKER, escape
from v1lit.data.images import EncodedImage
from v1lit.grounding.markup import answer_text, object_name, region_name
from v1lit.grounding.region import Region
from v1lit.grounding.trace import Detect, DetectedObject, Trace, format_trace

MOST_OBJECTS = 32
"""Objects of one call, beyond which a trace is more list than thought."""


class TraceWriter:
    """Writes the turns of one example; objects and regions are numbered over all of them."""

    def __init__(self) -> None:
        self.regions: dict[str, Region] = {}

    def call(self, query: str, regions: Sequence[Region]) -> Detect:
        """A call that finds these regions. Raises ValueError for too many."""
        if len(regions) > MOST_OBJECTS:
            raise ValueError(f"{len(regions)} objects are called {query!r:.60}; the limit is {MOST_OBJECTS}")
        return Detect(query=query, objects=tuple(map(self._object, regions)))

    def write(self, parts: Iterable[str | Detect]) -> str:
        """A turn of somebody's words and calls. Raises ValueError for words that would be read as a call."""
        return format_trace(Trace(tuple(escape(part) if isinstance(part, str) else part for part in parts)))

    def _object(self, region: Region) -> DetectedObject:
        number = len(self.regions) + 1
        self.regions[region_name(number)] = region
        return DetectedObject(name=object_name(number), region=region_name(number))


def looked_up(
    *,
    id: str,
    image: EncodedImage,
    question: str,
    query: str,
    regions: Sequence[Region],
    source: str,
    answer: str | None = None,
    thought: str | None = None,
) -> Example:
    """An example whose trace looks once: for `query`, which is found in these regions of its one image.

    Args:
        id: of the example.
        image: its image.
        question: what the user asks.
        query: what the trace looks for.
        regions: where that is.
        source: of the example.
        answer: when None, the names of the objects, or "none".
        thought: words of the trace behind the call.
    """
    trace = TraceWriter()
    call = trace.call(query, regions)
    objects = ", ".join(thing.name for thing in call.objects) or "none"
    behind = f"\n{thought.strip()} </think>" if thought and thought.strip() else " </think>"
    ending = answer_text(escape(answer) if answer is not None else objects)
    text = trace.write(["<think> ", call, behind]) + ending
    return Example(
        id=id,
        images=(image,),
        messages=(Message("user", f"{IMAGE_MARKER}\n{escape(question)}"), Message("assistant", text)),
        regions=trace.regions,
        answer=answer,
        source=source,
    )
