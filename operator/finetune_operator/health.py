"""Check that the event loop runs, and that passes are completed while keys wait.

It calls nothing outside of the process.
"""

import asyncio
import time

from finetune_operator.context import Context

MAX_LOOP_SECONDS = 30.0
MAX_PASS_SECONDS = 180.0


class Health:
    """The heartbeat that /healthz looks at."""

    def __init__(self, context: Context) -> None:
        """Record the first heartbeat."""
        self._context = context
        self._beat = time.monotonic()
        self._idle = time.monotonic()

    async def beat_forever(self) -> None:
        """Record once a second that the loop runs, and whether any key waits for this replica."""
        while True:
            self._beat = time.monotonic()
            if not len(self._context.queue) or not self._context.leadership.leads.is_set():
                self._idle = self._beat
            await asyncio.sleep(1)

    def find_fault(self) -> str | None:
        """Return what is wrong, or None."""
        now = time.monotonic()
        if now - self._beat > MAX_LOOP_SECONDS:
            return f"the event loop has not run for {now - self._beat:.0f} s"
        waiting = now - max(self._idle, self._context.metrics.last_pass_at)
        if waiting > MAX_PASS_SECONDS:
            return f"keys wait, and no pass was completed for {waiting:.0f} s"
        return None
