"""Slow down when somebody else takes away again and again what the operator applies."""

from collections.abc import Hashable

FREE = 3
"""Applies without a pause."""
FIRST_PAUSE, LAST_PAUSE = 60.0, 1800.0
"""Seconds before the next apply: at first, doubling, and at most."""
CALM = 600.0
"""So many seconds after the pause, what was applied counts as left alone."""


class ApplyBackoff:
    """How often something was applied lately, by key."""

    def __init__(self) -> None:
        """Begin without applies."""
        self._applies: dict[Hashable, tuple[int, float]] = {}

    def delay(self, key: Hashable, now: float) -> float:
        """Return the seconds to wait before the next apply, 0 if it may be made. ``now`` is monotonic time."""
        count, last = self._applies.get(key, (0, now))
        return max(0.0, last + _pause_after(count) - now)

    def note(self, key: Hashable, now: float) -> None:
        """Note that an apply was made."""
        count, last = self._applies.get(key, (0, now))
        left_alone = now - last >= _pause_after(count) + CALM
        self._applies[key] = (1 if left_alone else count + 1, now)

    def forget(self, key: Hashable) -> None:
        """Drop the applies of something that is no longer applied."""
        self._applies.pop(key, None)


def _pause_after(count: int) -> float:
    return 0.0 if count < FREE else min(FIRST_PAUSE * 2.0 ** min(count - FREE, 30), LAST_PAUSE)
