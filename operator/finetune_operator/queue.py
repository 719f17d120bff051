"""The keyed work queue: each key is there at most once, may be delayed, and is never with two workers."""

import asyncio
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class KeyedQueue(Generic[K]):
    """The queue that controller-runtime calls a rate-limiting work queue.

    A key that is added while a worker has it comes back when the worker is done. The newest pass over a key decides
    when the next one is due: taking a key cancels the delay that an earlier pass asked for.
    """

    def __init__(self, first_backoff: float = 0.2, last_backoff: float = 60.0) -> None:
        """Set the backoffs in seconds: after the first failure in a row, and at most."""
        self._first, self._last = first_backoff, last_backoff
        self._ready: dict[K, None] = {}
        self._active: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        # One ticket per ready key: whoever holds a ticket finds a key.
        self._tickets: asyncio.Queue[None] = asyncio.Queue()

    def __len__(self) -> int:
        """Return how many keys wait for a worker now."""
        return len(self._ready)

    def add(self, key: K) -> None:
        """Add a key that a worker takes as soon as possible."""
        if key in self._active:
            self._again.add(key)
        elif key not in self._ready:
            self._ready[key] = None
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
        """Forget the failures of a key whose pass went well."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Take the key that has waited longest; call ``done`` afterwards."""
        await self._tickets.get()
        key = next(iter(self._ready))
        del self._ready[key]
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
