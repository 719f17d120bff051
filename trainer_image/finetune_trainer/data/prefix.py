"""Compare the starts of two sequences."""

from collections.abc import Sequence
from typing import Any


def common_prefix_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Count the items that two sequences share at their start."""
    shorter = min(len(first), len(second))
    return next((n for n in range(shorter) if first[n] != second[n]), shorter)
