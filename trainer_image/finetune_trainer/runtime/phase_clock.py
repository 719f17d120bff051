"""Measure how much time the main thread spends in each phase, and so for what the GPUs are used.

Each second counts once, in the innermost phase. Work of other threads is not counted separately.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from finetune_api.finetunejob import Usage

PhaseName = Literal[
    "import", "fetch", "tokenize", "load", "hash", "train", "checkpoint", "verify", "evaluate", "publish", "other"
]
"""The phases, in their usual order."""


class PhaseClock:
    """Counts the seconds of each phase since the start."""

    def __init__(self) -> None:
        """Start to measure."""
        self.restart()

    def restart(self) -> None:
        """Forget what was measured, for another training in the same process."""
        self._seconds: dict[PhaseName, float] = {}
        self._stack: list[PhaseName] = ["other"]
        self._since = time.monotonic()

    @contextmanager
    def spend(self, name: PhaseName) -> Iterator[None]:
        """Count the time of this block as a phase, except blocks within it; in other threads, count nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._count()
        self._stack.append(name)
        try:
            yield
        finally:
            self._count()
            self._stack.pop()

    def measure_usage(self, gpus: int) -> Usage:
        """Return the GPU-seconds so far, by phase; without a GPU the phases are plain seconds."""
        seconds = dict(self._seconds)
        seconds[self._stack[-1]] = seconds.get(self._stack[-1], 0.0) + time.monotonic() - self._since
        phases = {name: round(seconds[name] * max(gpus, 1), 1) for name in get_args(PhaseName) if name in seconds}
        return Usage(gpu_seconds=round(sum(seconds.values()) * gpus, 1), phases=phases)

    def _count(self) -> None:
        """Add the time since the last change to the current phase."""
        now, phase = time.monotonic(), self._stack[-1]
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
        self._since = now


CLOCK = PhaseClock()
"""The clock of this process. It starts when this module is imported."""
