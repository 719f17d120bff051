"""Deterministic names of children: the same job and attempt always give the same name, so that nothing is ever created twice."""

import hashlib

PREFLIGHT = "preflight"
TRAINER = "trainer"
MAX_LENGTH = 63


def job_name(parent: str, role: str, attempt: int) -> str:
    """``<job>-preflight`` (``-2`` and so on for its repetitions) or ``<job>-train-<attempt>``, a valid label value and host name."""
    if role == TRAINER:
        return fit(parent, f"train-{attempt}")
    return fit(parent, PREFLIGHT if attempt == 1 else f"{PREFLIGHT}-{attempt}")


def fit(parent: str, suffix: str) -> str:
    """``<parent>-<suffix>``, the parent made short enough."""
    return f"{short(parent, MAX_LENGTH - len(suffix) - 1)}-{suffix}"


def short(name: str, length: int = MAX_LENGTH) -> str:
    """The name; one that is too long is cut, and the digest of the whole keeps it apart from others."""
    if len(name) <= length:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: length - len(digest) - 1].rstrip('.-')}-{digest}"
