"""Keep a list of the attempts of a run beside each checkpoint, for later attempts on other nodes."""

import json
from pathlib import Path
from typing import Any

HISTORY_FILE = "attempts.json"


def read_history(checkpoint: Path) -> list[dict[str, Any]]:
    """Read the attempts that led to a checkpoint, from its directory."""
    path = checkpoint / HISTORY_FILE
    history: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return history


def append_attempt(
    history: list[dict[str, Any]],
    *,
    number: int,
    started_at: str,
    resumed_from: int | None,
    device: str,
    adjustments: list[str],
) -> list[dict[str, Any]]:
    """Return the history with this attempt.

    On a workstation each attempt has number 1; it then gets the number after the last one's.
    """
    last = history[-1]["number"] if history else 0
    attempt = {
        "number": max(number, last + 1),
        "startedAt": started_at,
        "resumedFromStep": resumed_from,
        "device": device,
        "adjustments": adjustments,
    }
    return [*history, attempt]
