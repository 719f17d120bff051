"""Handle SIGTERM: ask the training loop for a checkpoint, and end the process at once everywhere else."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MARGIN_SECONDS = 5.0
"""Seconds of the grace period that are reserved for writing the result."""


class Interruption:
    """Records whether the pod was asked to stop, and how long it may still work."""

    def __init__(self, grace_seconds: float, exit_process: Callable[[], None]) -> None:
        """Set the grace period.

        Args:
            grace_seconds: Seconds between SIGTERM and SIGKILL.
            exit_process: Ends the process; it must not return.
        """
        self.requested = False
        self._grace = max(grace_seconds - MARGIN_SECONDS, 1.0)
        self._exit_process = exit_process
        self._deferred = False
        self._deadline = 0.0

    def install(self) -> None:
        """Install the handler of SIGTERM. Only the main thread may call this."""
        signal.signal(signal.SIGTERM, lambda *_: self.request())

    def request(self) -> None:
        """Ask the process to stop. A second request changes nothing."""
        if self.requested:
            return
        self.requested = True
        self._deadline = time.monotonic() + self._grace
        if not self._deferred:
            self._exit_process()

    def seconds_left(self) -> float:
        """Return the seconds that are left of the grace period; call it only after a request."""
        return max(self._deadline - time.monotonic(), 0.0)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Delay the end of the process to the end of this block; within it a request only sets a flag."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:
            self._exit_process()
