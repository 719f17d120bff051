"""Build deterministic names of children, so that nothing is created twice."""

import hashlib
import re

PREFLIGHT = "preflight"
TRAINER = "trainer"
MERGE = "merge"
CLEAN_UP = "clean-up"
MAX_LENGTH = 63


def job_name(parent: str, role: str, number: int) -> str:
    """Return the name of a Job: ``<job>-preflight``, ``<job>-train-<number>``, ``<job>-merge`` or ``<job>-clean-up``.

    A repeated preflight is ``<job>-preflight-2`` and so on; merges and clean-ups too. A name has at most 63 characters.
    """
    if role == TRAINER:
        return fit(parent, f"train-{number}")
    return fit(parent, role if number == 1 else f"{role}-{number}")


def read_number(name: str) -> int:
    """Read the number of a trainer's Job from its name."""
    return int(name.rpartition("-")[2])


def read_attempt(name: str, parent: str, role: str) -> int | None:
    """Read the number from the name of a Job; None if ``job_name`` gives this name to no Job of this role."""
    digits = re.search(r"[1-9][0-9]*$", name)
    attempt = int(digits[0]) if digits else 1
    return attempt if job_name(parent, role, attempt) == name else None


def fit(parent: str, suffix: str) -> str:
    """Return ``<parent>-<suffix>``, with the parent shortened to fit into a label value."""
    return f"{short(parent, MAX_LENGTH - len(suffix) - 1)}-{suffix}"


def short(name: str, length: int = MAX_LENGTH) -> str:
    """Shorten a name that is too long; a digest of the full name keeps it unique."""
    if len(name) <= length:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: length - len(digest) - 1].rstrip('.-')}-{digest}"
