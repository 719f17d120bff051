"""Queue keys for workers. A key is queued at most once, can be delayed, and is never given to two workers.

Work that has begun is finished first: keys of work that has not begun wait while others are ready.
"""

import asyncio
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
PATIENCE = 9
"""Maximum number of keys of begun work that are taken while a key of new work waits, so that it never starves."""


class KeyedQueue(Generic[K]):
    """The queue that controller-runtime calls a rate-limiting work queue.

    A key that is added while a worker has it is queued again when the worker is done. The newest pass over a key
    decides when the next one is due: taking a key cancels the delay that an earlier pass set.
    """

    def __init__(self, first_backoff: float = 0.2, last_backoff: float = 60.0) -> None:
        """Set the backoffs in seconds: after the first failure, and the longest."""
        self._first, self._last = first_backoff, last_backoff
        self._begun: dict[K, None] = {}
        self._new: dict[K, None] = {}
        self._passed_over = 0
        self._active: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        # There is one ticket for each ready key, so that a worker with a ticket finds a key.
        self._tickets: asyncio.Queue[None] = asyncio.Queue()

    def __len__(self) -> int:
        """Return how many keys wait for a worker now."""
        return len(self._begun) + len(self._new)

    def add(self, key: K, *, is_new: bool = False) -> None:
        """Add a key that a worker takes as soon as possible. Keys of new work come after those of begun work."""
        if key in self._active:
            self._again.add(key)
        elif key in self._new:
            if not is_new:
                del self._new[key]
                self._begun[key] = None
        elif key not in self._begun:
            (self._new if is_new else self._begun)[key] = None
            self._tickets.put_nowait(None)

    def add_after(self, key: K, seconds: float) -> None:
        """Add a key after a delay; of two delays the shorter one counts."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._fire, key)

    def retry(self, key: K) -> float:
        """Add a key whose pass failed, after a delay; return the delay in seconds.

        It doubles with each failure in a row.
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay: float = min(self._first * 2 ** min(failures, 30), self._last)
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """Forget the failures of a key whose pass has succeeded."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Take the key that has waited longest, work in progress first; call ``done`` afterwards."""
        await self._tickets.get()
        takes_new = bool(self._new) and (not self._begun or self._passed_over >= PATIENCE)
        self._passed_over = self._passed_over + 1 if self._new and not takes_new else 0
        ready = self._new if takes_new else self._begun
        key = next(iter(ready))
        del ready[key]
        self._active.add(key)
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        return key

    def done(self, key: K) -> None:
        """Give a key back after its pass."""
        self._active.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _fire(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)
