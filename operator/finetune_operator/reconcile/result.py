"""The result of a pass, for the worker that made it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """``requeue_after``: seconds until the next pass. None: the next pass follows the next change."""

    requeue_after: float | None = None
