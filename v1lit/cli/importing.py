"""What a script imports: millions of objects that stay, among which the collector of garbage finds none."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_script = False


def is_script() -> None:
    """Called once by a script that owns its process."""
    global _script
    _script = True


@contextmanager
def importing() -> Iterator[None]:
    """Collect no garbage inside, and never look again at what was made there; only in a script.

    Saves a fifth of the processor time before a run takes its first step.
    """
    if not _script or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
