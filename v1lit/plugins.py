"""What other packages add to v1lit: entry points, found without importing anything."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points


def plugins(group: str) -> dict[str, list[EntryPoint]]:
    """The entry points of a group by name; several, if several packages claim the name."""
    points: dict[str, list[EntryPoint]] = {}
    for point in _declared(group, tuple(sys.path)):
        # The same distribution can be found twice on one path (editable install beside its metadata).
        if point.value not in [other.value for other in points.get(point.name, [])]:
            points.setdefault(point.name, []).append(point)
    return points


@cache
def _declared(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Those of all packages on the path. Looking takes milliseconds, and every model that is made asks."""
    return tuple(entry_points(group=group))
