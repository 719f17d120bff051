"""Whether the operator still does its work: the event loop runs, and passes are completed while keys wait. Never asks anything outside."""

import asyncio
import time

from finetune_operator.context import Context

MAX_LOOP_SECONDS = 30.0
MAX_PASS_SECONDS = 180.0


class Health:
    """The heartbeat that /healthz looks at."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._beat = time.monotonic()
        self._idle = time.monotonic()

    async def beat_forever(self) -> None:
        """Once a second: the loop runs, and perhaps no key waits."""
        while True:
            self._beat = time.monotonic()
            if not len(self._context.queue) or not self._context.synced.is_set():
                self._idle = self._beat
            await asyncio.sleep(1)

    def wrong(self) -> str | None:
        """What is wrong, or None."""
        now = time.monotonic()
        if now - self._beat > MAX_LOOP_SECONDS:
            return f"the event loop has not run for {now - self._beat:.0f} s"
        waiting = now - max(self._idle, self._context.metrics.last_pass_at)
        if waiting > MAX_PASS_SECONDS:
            return f"keys wait, and no pass was completed for {waiting:.0f} s"
        return None
