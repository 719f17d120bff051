"""What a pass gives back to the worker."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """When to look again without being nudged; None: only when something changes."""

    requeue_after: float | None = None
