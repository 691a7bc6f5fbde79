"""File systems of fsspec, opened so that forked processes can use them, and calls with a time limit.

fsspec runs requests in a thread with an event loop, and neither survives a fork. It notices the fork and
makes new ones, but it also throws the parent's file systems away. Closing them in the child takes a second
each, and unregisters the parent's connections from an epoll object that both processes share: the parent then
waits for answers that it is never told of. So they are kept here, per process, and what a child inherits is
left alone.
"""

from __future__ import annotations

import functools
import os
import re
from typing import Any

from v1lit.data.remote.error import shown
from v1lit.data.remote.retry import Retry

WITH_EXTRA = ("s3", "gs", "az")
"""Schemes of which each needs the extra of its name."""
SCHEMES = ("http", "https", "s3", "gs", "az", "hf")

_opened: dict[tuple[int, str, float], Any] = {}


def scheme_of(location: str) -> str | None:
    """What stands before "://", None for a local path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", location)
    return match[1].lower() if match else None


def is_web(location: str) -> bool:
    """Whether a location is on a web server."""
    return scheme_of(location) in ("http", "https")


def open_filesystem(url: str, retry: Retry) -> Any:
    """The fsspec file system of a URL; one per process and scheme.

    Raises ValueError for an unknown scheme, or one whose package is not installed.
    """
    scheme = scheme_of(url) or ""
    key = (os.getpid(), scheme, retry.timeout)
    if key not in _opened:
        _opened.setdefault(key, _new(url, scheme, retry))
    return _opened[key]


def forget() -> None:
    """Let go of the connections of this process, so that changed credentials or settings are read again."""
    for key in [key for key in _opened if key[0] == os.getpid()]:
        del _opened[key]


def call(filesystem: Any, method: str, *args: Any, timeout: float | None, **kwargs: Any) -> Any:
    """Call a method of a file system. Where it runs in fsspec's event loop, `timeout` seconds end it."""
    if not filesystem.async_impl:
        return getattr(filesystem, method)(*args, **kwargs)
    return run(filesystem, getattr(filesystem, f"_{method}"), *args, timeout=timeout, **kwargs)


def run(filesystem: Any, function: Any, *args: Any, timeout: float | None, **kwargs: Any) -> Any:
    """Run an async function in the event loop of a file system, for `timeout` seconds at most."""
    from fsspec.asyn import sync

    return sync(filesystem.loop, function, *args, timeout=timeout, **kwargs)


def _new(url: str, scheme: str, retry: Retry) -> Any:
    if scheme not in SCHEMES:
        schemes = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(f"{shown(url)}: {scheme}:// cannot be read; known are local paths and {schemes}")
    import fsspec

    _mend_fork()
    try:
        filesystem = fsspec.filesystem(scheme, skip_instance_cache=True, **_options(scheme, retry))
    except ImportError as error:
        if scheme not in WITH_EXTRA:
            raise
        why = f"needs a package that is not installed: pip install 'v1lit[{scheme}]'"
        raise ValueError(f"{shown(url)}: {scheme}:// {why}") from error
    if scheme in ("s3", "gs"):
        filesystem.retries = 1  # Attempts are counted in one place only.
    return filesystem


@functools.cache
def _mend_fork() -> None:
    """Let forked children, which have no loop of fsspec, not keep its lock, which the parent may hold."""
    from fsspec.asyn import reset_lock

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=reset_lock)


def _options(scheme: str, retry: Retry) -> dict[str, Any]:
    """Ours, merged into those of fsspec's configuration, which would be replaced otherwise."""
    from fsspec.config import conf

    settings: dict[str, Any] = {**conf.get(scheme, {})}
    if scheme in ("http", "https"):
        return {"client_kwargs": {"trust_env": True, **settings.get("client_kwargs", {})}}
    if scheme == "s3":
        limits = {
            "connect_timeout": retry.timeout,
            "read_timeout": retry.timeout,
            "retries": {"max_attempts": 0},
        }
        return {
            "use_listings_cache": False,
            "config_kwargs": {**limits, **settings.get("config_kwargs", {})},
        }
    return {"use_listings_cache": False} if scheme in ("gs", "az") else {}
