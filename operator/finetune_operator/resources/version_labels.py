"""Build the labels of a pod that say which version it serves, for Services that split traffic. Pure."""

import hashlib

from finetune_api import GROUP
from finetune_api.version_paths import short_digits

MAX_PREFIX = 253
"""Longest prefix of a label's key that Kubernetes takes."""
NAMES = ("version", "stable", "canary")


def build_labels(deployment: str, digest: str | None, *, stable: bool, canary: bool) -> dict[str, str | None]:
    """Build the labels of one AdapterDeployment on a pod; None for one that is not to be there.

    Args:
        deployment: Name of the AdapterDeployment.
        digest: Digest of the version that the pod serves; None: none.
        stable: The pod belongs to the Service of the version before.
        canary: It belongs to the Service of the new version.
    """
    version = short_digits(digest) if digest else None
    values = (version, "true" if stable else None, "true" if canary else None)
    return {f"{label_prefix(deployment)}/{name}": value for name, value in zip(NAMES, values, strict=True)}


def label_prefix(deployment: str) -> str:
    """Return the prefix of the labels of an AdapterDeployment. A hash replaces a name that is too long."""
    prefix = f"{deployment}.{GROUP}"
    return prefix if len(prefix) <= MAX_PREFIX else f"{hashlib.sha256(deployment.encode()).hexdigest()[:20]}.{GROUP}"


def find_leftovers(labels: dict[str, str], prefixes: set[str]) -> list[str]:
    """Find our labels with other prefixes, of AdapterDeployments that were deleted or have no canary."""
    ours = [key for key in labels if key.rpartition("/")[0].endswith(f".{GROUP}") and key.rpartition("/")[2] in NAMES]
    return [key for key in ours if key.rpartition("/")[0] not in prefixes]
