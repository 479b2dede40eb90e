"""What Holdfast says: the logger `holdfast`, whose start line and warnings always reach stderr."""

from __future__ import annotations

import logging
import sys

from holdfast.errors import printable

logger = logging.getLogger("holdfast")


class _Stderr(logging.Handler):
    """Writes to whatever `sys.stderr` is at that moment (notebooks and tests replace it)."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            word = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
            stream = sys.stderr
            if stream is not None:
                stream.write(f"holdfast: {word}{printable(record.getMessage())}\n")
                stream.flush()
        except (OSError, ValueError):
            self.handleError(record)


def speak() -> None:
    """Attaches the handler once; a handler that the user gave this logger replaces ours."""
    if not logger.handlers:
        logger.addHandler(_Stderr())
        logger.setLevel(logging.INFO)
        logger.propagate = False


speak()
