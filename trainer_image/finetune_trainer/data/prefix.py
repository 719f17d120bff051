"""Compare the starts of two sequences."""

from collections.abc import Sequence
from typing import Any


def common_prefix_length(some: Sequence[Any], others: Sequence[Any]) -> int:
    """Count the items that two sequences share at their start."""
    shorter = min(len(some), len(others))
    return next((n for n in range(shorter) if some[n] != others[n]), shorter)
