"""End an attempt whose training loop makes no progress, so that it frees its GPUs."""

import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

from finetune_trainer.runtime.logs import log

MIN_SECONDS = 600.0
"""Seconds that a step may always take."""
MEDIAN_FACTOR = 20.0
"""A step may take this many times the median of the last steps."""
WARM_UP_SECONDS = 3600.0
"""Seconds that each of the first steps may take: they compile kernels, and read the first rows."""
WARM_UP_STEPS = 2
RECENT_STEPS = 50
TICK_SECONDS = 1.0
ANSWER_SECONDS = 60.0
"""How long a loop that is asked to stop may take to save a checkpoint."""


class Watchdog:
    """Watch the training loop from a thread of its own, between `start` and `close`."""

    def __init__(self, ask_to_stop: Callable[[str], None], abandon: Callable[[str], None]) -> None:
        """Store what to do after a stall; both functions receive a message for the user.

        Args:
            ask_to_stop: Asks the loop for a checkpoint; it returns at once.
            abandon: Ends the process, if the loop does not answer within a minute.
        """
        self._ask_to_stop, self._abandon = ask_to_stop, abandon
        self._durations: deque[float] = deque(maxlen=RECENT_STEPS)
        self._steps = 0
        self._silent_seconds = 0.0
        self._last = time.monotonic()
        self._closed = threading.Event()

    def start(self) -> None:
        """Start to watch."""
        self.beat()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def beat(self) -> None:
        """Record progress within a step, such as one row of an evaluation."""
        self._silent_seconds, self._last = 0.0, time.monotonic()

    def step(self) -> None:
        """Record that a step is done."""
        self._steps += 1
        if self._steps > WARM_UP_STEPS:
            self._durations.append(time.monotonic() - self._last)
        self.beat()

    def allowed_seconds(self) -> float:
        """Return how long the loop may be without progress now."""
        if not self._durations:
            return WARM_UP_SECONDS
        return max(MIN_SECONDS, MEDIAN_FACTOR * statistics.median(self._durations))

    def _watch(self) -> None:
        while not self._closed.wait(TICK_SECONDS):
            # Ticks are counted, not time: a process that was stopped (Ctrl-Z, a frozen pod) has not stalled.
            self._silent_seconds += TICK_SECONDS
            if self._silent_seconds >= self.allowed_seconds():
                self._end(f"no progress for {self._silent_seconds:.0f} s after {self._steps} steps of this attempt")
                return

    def _end(self, message: str) -> None:
        log.error("%s; where each thread is:\n%s", message, format_stacks())
        self._ask_to_stop(message)
        if not self._closed.wait(ANSWER_SECONDS):
            self._abandon(f"{message}, and the training does not answer: the log shows where each thread is")


def format_stacks() -> str:
    """Return the stack of each thread of this process, the newest call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(number, number)}:\n{''.join(traceback.format_stack(frame)).rstrip()}"
        for number, frame in sys._current_frames().items()
    )
