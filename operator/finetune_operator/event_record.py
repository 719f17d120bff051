"""Describe a Kubernetes Event, which ``events`` writes."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EventRecord:
    """One Kubernetes Event about an object.

    ``reason`` is a word for programs, ``action`` what the operator did, ``note`` a sentence for people. An object gets
    one event for each ``reason`` and ``key``; a second one is not written. ``attempt`` is the number of the attempt
    that it concerns, if it concerns one.
    """

    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    note: str
    key: str = ""
    attempt: int | None = None
