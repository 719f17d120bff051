"""Name a version: its directory on the shared volume, the variable with that directory, and its name in the engine."""

from pathlib import Path
from urllib.parse import quote

VARIABLE_PREFIX = "FINETUNE_PATH_"
SHORT = 12
"""Number of digits by which a person tells digests apart."""


def hex_digits(digest: str) -> str:
    """Return ``sha256:<64 digits>`` without its prefix."""
    return digest.removeprefix("sha256:")


def short_digits(digest: str) -> str:
    """Return the first digits of a digest, as names and labels have them."""
    return hex_digits(digest)[:SHORT]


def shorten(digest: str) -> str:
    """Return ``sha256:`` and the first digits of a digest, as messages and tables show it."""
    return digest[: len("sha256:") + SHORT]


def adapter_directory(root: Path, served_name: str) -> Path:
    """Return the directory of all versions of a served name. Slashes are escaped, so no name leads out of ``root``."""
    return root / quote(served_name, safe="")


def version_directory(root: Path, served_name: str, digest: str) -> Path:
    """Return the directory of one version. It never changes: another version has another path."""
    return adapter_directory(root, served_name) / hex_digits(digest)


def version_name(served_name: str, digest: str) -> str:
    """Return the name under which an engine has one version, beside others: ``support-bot@0123456789ab``.

    No served name has an ``@``.
    """
    return f"{served_name}@{short_digits(digest)}"


def names_version(served_name: str) -> bool:
    """Return whether a served name is that of one version, so that it never moves to another."""
    return "@" in served_name


def path_variable(deployment: str) -> str:
    """Return the variable with the directory of an AdapterDeployment's version: ``FINETUNE_PATH_SUPPORT_BOT``.

    The engine's arguments name it as ``$(FINETUNE_PATH_SUPPORT_BOT)``.
    """
    return VARIABLE_PREFIX + deployment.upper().replace("-", "_").replace(".", "_")
