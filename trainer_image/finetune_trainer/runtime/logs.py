"""The log that people read with kubectl logs: one plain line for each event, with the seconds since the start."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_START = time.monotonic()
log = logging.getLogger("finetune_trainer")
SHOWN_AS_BAR = "shown_as_bar"
"""Attribute of a record that says no more than a progress bar does."""


class _Formatter(logging.Formatter):
    def __init__(self, name: str = "") -> None:
        super().__init__()
        self._name = f"{name}: " if name else ""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        line = f"{elapsed():8.1f}s  {self._name}{level}{record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def elapsed() -> float:
    """Seconds since this process began to work."""
    return time.monotonic() - _START


def configure(destination: logging.Handler | None = None, *, worker: str = "") -> None:
    """Send our lines, and other libraries' warnings, to standard output, or to where ``destination`` puts them.

    A ``worker`` of this name says the same as the process that started it: only what goes wrong is heard of it.
    """
    handler = destination or logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter(worker))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("finetune_trainer", "finetune_artifacts"):
        logging.getLogger(name).setLevel(logging.WARNING if worker else logging.INFO)
    # it wants a kernel from the network where a CPU could use one
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Log the beginning of a phase, and how long it took."""
    log.info("%s …", name)
    start = time.monotonic()
    yield
    log.info("%s: done in %.1f s", name, time.monotonic() - start)
