"""Delay the next apply when somebody else removes again and again what the operator applies.

An apply of other content, for example of another version, does not count as a repetition.
"""

from collections.abc import Hashable

FREE = 3
"""Number of applies without a pause."""
FIRST_PAUSE, LAST_PAUSE = 60.0, 1800.0
"""Seconds before the next apply: the first pause, which doubles each time, and the longest one."""
CALM = 600.0
"""If nothing had to be applied for this many seconds after the pause, counting starts again."""


class ApplyBackoff:
    """Count recent applies by key."""

    def __init__(self) -> None:
        """Create it without applies."""
        self._applies: dict[Hashable, tuple[str, int, float]] = {}

    def delay(self, key: Hashable, content: str, now: float) -> float:
        """Return the seconds to wait before the next apply, 0 if it may be made. ``now`` is monotonic time."""
        count, last = self._find(key, content, now)
        return max(0.0, last + _pause_after(count) - now)

    def note(self, key: Hashable, content: str, now: float) -> None:
        """Record that an apply was made."""
        count, last = self._find(key, content, now)
        is_calm = now - last >= _pause_after(count) + CALM
        self._applies[key] = (content, 1 if is_calm else count + 1, now)

    def _find(self, key: Hashable, content: str, now: float) -> tuple[int, float]:
        """Find how often this content was applied lately, and when last."""
        applied, count, last = self._applies.get(key, (content, 0, now))
        return (count, last) if applied == content else (0, now)

    def forget(self, key: Hashable) -> None:
        """Drop the applies of something that is no longer applied."""
        self._applies.pop(key, None)


def _pause_after(count: int) -> float:
    return 0.0 if count < FREE else min(FIRST_PAUSE * 2.0 ** min(count - FREE, 30), LAST_PAUSE)
