"""What libraries print and warn of while something runs, kept for later."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from v1lit.training.quiet import LOGGERS, is_wanted


class CapturedOutput:
    """Collects over several `with captured.capture():`; nothing reaches the screen meanwhile."""

    def __init__(self) -> None:
        self.warnings: Counter[str] = Counter()
        """Warnings, and log records of that level or above, with how often each came."""
        self.printed = ""
        """All that was written to stdout and stderr."""

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Capture what is written meanwhile, by C code too, and by handlers that kept the old stderr."""
        with (
            tempfile.TemporaryFile() as file,
            _descriptors(file.fileno()),
            self._log_records(),
            warnings.catch_warnings(record=True) as caught,
        ):
            try:
                yield
            finally:
                self.warnings.update(f"{w.category.__name__}: {w.message}" for w in caught)
                _flush()
                file.seek(0)
                self.printed += file.read().decode("utf-8", errors="replace")

    @contextmanager
    def _log_records(self) -> Iterator[None]:
        make = logging.getLogRecordFactory()

        def noting(*arguments: Any, **options: Any) -> logging.LogRecord:
            record = make(*arguments, **options)
            if record.levelno >= logging.WARNING and (record.name not in LOGGERS or is_wanted(record)):
                self.warnings[f"{record.name}: {record.getMessage()}"] += 1
            return record

        logging.setLogRecordFactory(noting)
        try:
            yield
        finally:
            logging.setLogRecordFactory(make)


@contextmanager
def _descriptors(target: int) -> Iterator[None]:
    """Let the process's own stdout and stderr write to `target`."""
    _flush()
    kept = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
    try:
        for descriptor, _ in kept:
            os.dup2(target, descriptor)
        yield
    finally:
        for descriptor, copy in kept:
            os.dup2(copy, descriptor)
            os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
