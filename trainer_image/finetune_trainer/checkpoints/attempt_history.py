"""The attempts that a run took, kept beside each checkpoint: the next attempt, on another node, knows of those before it."""

import json
from pathlib import Path
from typing import Any

HISTORY_FILE = "attempts.json"


def read_history(checkpoint: Path) -> list[dict[str, Any]]:
    """The attempts that led to a checkpoint."""
    path = checkpoint / HISTORY_FILE
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return found


def append_attempt(
    before: list[dict[str, Any]],
    number: int,
    started_at: str,
    resumed_from: int | None,
    device: str,
    adjustments: list[str],
) -> list[dict[str, Any]]:
    """Those before, and this one. ``number`` is what it is called, unless the last one was called so (on a workstation all are the first)."""
    last = before[-1]["number"] if before else 0
    this = {
        "number": max(number, last + 1),
        "startedAt": started_at,
        "resumedFromStep": resumed_from,
        "device": device,
        "adjustments": adjustments,
    }
    return [*before, this]
