"""Record each version of an adapter that was served or failed, the newest entry first. Pure."""

from collections.abc import Sequence
from typing import Literal

from finetune_api.adapterdeployment import AdapterVersion, HistoryEntry
from finetune_api.limits import HISTORY_MESSAGE_CHARACTERS, truncate

MAX_PROOFS = 3
"""Maximum number of pods' proofs in an entry."""


def find_current(history: Sequence[HistoryEntry]) -> HistoryEntry | None:
    """Find the entry of the version that every pod served last."""
    return next((entry for entry in history if entry.event == "Deployed" and entry.until is None), None)


def record_deployed(
    history: Sequence[HistoryEntry],
    version: AdapterVersion,
    since: str,
    proofs: Sequence[str],
    steps: Sequence[str] = (),
) -> list[HistoryEntry]:
    """Record that every pod serves a version; the entry of the one before ends there.

    ``steps`` say what let it pass each step of its canary, ``proofs`` what the pods found.
    """
    current = find_current(history)
    if current is not None and current.digest == version.digest:
        return list(history)
    entry = _build_entry(version, "Deployed", since, evidence=[*steps, *proofs[:MAX_PROOFS]])
    ended = [older.model_copy(update={"until": since}) if older is current else older for older in history]
    return [entry, *ended]


def record_failed(
    history: Sequence[HistoryEntry],
    version: AdapterVersion,
    event: Literal["RolledBack", "Failed"],
    at: str,
    reason: str,
    message: str,
    evidence: Sequence[str] = (),
) -> list[HistoryEntry]:
    """Record that a roll-out failed, or was rolled back. The same failure of the same version is recorded once."""
    if history and (history[0].digest, history[0].event, history[0].reason) == (version.digest, event, reason):
        return list(history)
    return [_build_entry(version, event, at, reason, message, evidence), *history]


def trim(history: Sequence[HistoryEntry], limit: int) -> list[HistoryEntry]:
    """Keep the entry of the version that every pod served last, and the ``limit`` newest others."""
    current = find_current(history)
    entries = [entry for entry in history if entry is not current][:limit]
    if current is None:
        return entries
    newer = next(position for position, entry in enumerate(history) if entry is current)
    return [*entries[:newer], current, *entries[newer:]]


def _build_entry(
    version: AdapterVersion,
    event: Literal["Deployed", "RolledBack", "Failed"],
    since: str,
    reason: str | None = None,
    message: str | None = None,
    evidence: Sequence[str] = (),
) -> HistoryEntry:
    return HistoryEntry(
        uri=version.uri,
        digest=version.digest,
        fine_tune_job=version.fine_tune_job,
        s3=version.s3,
        secret_ref=version.secret_ref,
        event=event,
        since=since,
        reason=reason,
        message=truncate(message, HISTORY_MESSAGE_CHARACTERS) if message else None,
        evidence=[truncate(text, HISTORY_MESSAGE_CHARACTERS) for text in evidence],
    )
