"""What the operator wants to tell a person about an object; ``events`` writes it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Note:
    """One event: ``reason`` for programs, ``action`` for what the operator did, ``text`` for people.

    ``once`` tells events of the same reason apart; a second event of the same object, reason and ``once`` is not written.
    """

    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    text: str
    once: str = ""
