"""Deterministic names of children, so that nothing is created twice."""

import hashlib

PREFLIGHT = "preflight"
TRAINER = "trainer"
CLEAN_UP = "clean-up"
MAX_LENGTH = 63


def job_name(parent: str, role: str, attempt: int) -> str:
    """Return the name of a Job: ``<job>-preflight``, ``<job>-train-<attempt>`` or ``<job>-clean-up``.

    A repeated preflight is ``<job>-preflight-2`` and so on, and so is a clean-up. A name has at most 63 characters.
    """
    if role == TRAINER:
        return fit(parent, f"train-{attempt}")
    return fit(parent, role if attempt == 1 else f"{role}-{attempt}")


def fit(parent: str, suffix: str) -> str:
    """Return ``<parent>-<suffix>``, with the parent shortened to fit into a label value."""
    return f"{short(parent, MAX_LENGTH - len(suffix) - 1)}-{suffix}"


def short(name: str, length: int = MAX_LENGTH) -> str:
    """Shorten a name that is too long; a digest of the whole name keeps it apart from others."""
    if len(name) <= length:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: length - len(digest) - 1].rstrip('.-')}-{digest}"
