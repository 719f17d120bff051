"""Define the result of a pass, for the worker that made it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """The result of a pass: the seconds until the next one. None: the next pass follows the next change."""

    requeue_after: float | None = None
