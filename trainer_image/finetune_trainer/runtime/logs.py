"""Write the log for ``kubectl logs``: one plain line for each event, with the seconds since the start."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from finetune_trainer.runtime.phase_clock import CLOCK, PhaseName

_START = time.monotonic()
log = logging.getLogger("finetune_trainer")
SHOWN_AS_BAR = "shown_as_bar"
"""Attribute of a log record whose content a progress bar shows as well."""


class _Formatter(logging.Formatter):
    def __init__(self, name: str = "") -> None:
        super().__init__()
        self._name = f"{name}: " if name else ""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        line = f"{elapsed():8.1f}s  {self._name}{level}{record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def elapsed() -> float:
    """Return the seconds since this process started to work."""
    return time.monotonic() - _START


def configure(destination: logging.Handler | None = None, *, worker: str = "") -> None:
    """Send our log lines, and other libraries' warnings, to standard output or to ``destination``.

    Args:
        destination: A handler that replaces standard output.
        worker: The name of a worker process. It logs warnings and errors only, because the process that started it logs
            the rest.
    """
    handler = destination or logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter(worker))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("finetune_trainer", "finetune_artifacts"):
        logging.getLogger(name).setLevel(logging.WARNING if worker else logging.INFO)
    # bitsandbytes warns that it cannot download a kernel for the CPU.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def phase(name: str, counts_as: PhaseName = "other") -> Iterator[None]:
    """Log the start of a phase, and how long it took; ``counts_as`` is its name in ``status.usage``."""
    log.info("%s …", name)
    start = time.monotonic()
    with CLOCK.spend(counts_as):
        yield
    log.info("%s: done in %.1f s", name, time.monotonic() - start)
