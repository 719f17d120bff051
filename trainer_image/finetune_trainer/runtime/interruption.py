"""SIGTERM: in the training loop a flag that asks for a checkpoint; anywhere else, where nothing would be lost, the end at once."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MARGIN_SECONDS = 5.0
"""Kept back from the grace period for writing the result."""


class Interruption:
    """Whether the pod was asked to stop, and until when it may still work. ``leave`` ends the process; it must not return."""

    def __init__(self, grace_seconds: float, leave: Callable[[], None]) -> None:
        self.requested = False
        self._grace = max(grace_seconds - MARGIN_SECONDS, 1.0)
        self._leave = leave
        self._deferred = False
        self._deadline = 0.0

    def install(self) -> None:
        """Listen for SIGTERM. Only the main thread may call this."""
        signal.signal(signal.SIGTERM, lambda *_: self.request())

    def request(self) -> None:
        """Stop as soon as nothing is lost by it. A second request changes nothing."""
        if self.requested:
            return
        self.requested = True
        self._deadline = time.monotonic() + self._grace
        if not self._deferred:
            self._leave()

    def seconds_left(self) -> float:
        """What is left of the grace period; meaningful once ``requested``."""
        return max(self._deadline - time.monotonic(), 0.0)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within this block a request only sets the flag; one that nobody heeded is heeded at its end."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:
            self._leave()
