"""Limit the status writes that only carry progress.

One token bucket serves the whole operator; each object has a shortest interval between two writes.
"""

from collections.abc import Hashable


class WriteBudget:
    """A token bucket, and the time of the last write of each object."""

    def __init__(self, per_second: float, interval: float) -> None:
        """Set the rate and the interval.

        Allows ``per_second`` writes on average, in bursts of two seconds' worth, and one write of an object within
        ``interval`` seconds.
        """
        self._rate = per_second
        self._size = max(1.0, 2 * per_second)
        self._interval = interval
        self._tokens = self._size
        self._filled_at = 0.0
        self._last: dict[Hashable, float] = {}

    def delay(self, key: Hashable, now: float) -> float:
        """Take a token and return 0, or return the seconds to wait before the next try.

        ``now`` is monotonic time.
        """
        self._tokens = min(self._size, self._tokens + max(0.0, now - self._filled_at) * self._rate)
        self._filled_at = now
        wait = self._last.get(key, now - self._interval) + self._interval - now
        if wait > 0:
            return wait
        if self._tokens < 1:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        self._last[key] = now
        return 0.0

    def forget(self, key: Hashable) -> None:
        """Drop the time of an object that is gone."""
        self._last.pop(key, None)
