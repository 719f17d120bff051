"""How often a status write that only carries progress may happen: one token bucket for the operator, and a shortest interval per object."""

from collections.abc import Hashable


class WriteBudget:
    """A token bucket. Writes that change more than progress never ask it."""

    def __init__(self, per_second: float, interval: float) -> None:
        """At most ``per_second`` writes a second on average (bursts of two seconds' worth), one object every ``interval`` seconds."""
        self._rate = per_second
        self._size = max(1.0, 2 * per_second)
        self._interval = interval
        self._tokens = self._size
        self._filled_at = 0.0
        self._last: dict[Hashable, float] = {}

    def delay(self, key: Hashable, now: float) -> float:
        """0 if the object may be written at the monotonic time ``now`` (the token is taken), else the seconds to wait before asking again."""
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
        """The object is finished or gone."""
        self._last.pop(key, None)
