"""Where an adapter's versions lie on the volume that agent and engine share, and which names the engine knows them by."""

from pathlib import Path
from urllib.parse import quote, unquote

SHORT_DIGEST = 12
"""Digits of the digest in the name of a candidate."""


def hex_digits(digest: str) -> str:
    """``sha256:<64 digits>`` without its prefix."""
    return digest.removeprefix("sha256:")


def adapter_directory(root: Path, served_name: str) -> Path:
    """The directory of all versions of a served name. A slash in the name is escaped, so that no name reaches out of ``root``."""
    return root / quote(served_name, safe="")


def version_directory(root: Path, served_name: str, digest: str) -> Path:
    """The directory of one version. It is never changed: another version is always another path."""
    return adapter_directory(root, served_name) / hex_digits(digest)


def candidate_name(served_name: str, digest: str) -> str:
    """The name under which a version is loaded beside the one that serves, until it is proven."""
    return f"{served_name}@{hex_digits(digest)[:SHORT_DIGEST]}"


def served_name_of(engine_name: str) -> str:
    """The served name that a name in the engine belongs to: a served name holds no ``@``, a candidate's does."""
    return engine_name.partition("@")[0]


def digest_of_path(root: Path, path: str) -> str | None:
    """The digest of the version that lies at ``path``; None if the path is not one of ours below ``root``."""
    try:
        parts = Path(path).relative_to(root).parts
    except ValueError:
        return None
    return f"sha256:{parts[1]}" if len(parts) == 2 else None


def names_on_disk(root: Path) -> list[str]:
    """The served names that have a directory below ``root``."""
    return sorted(unquote(entry.name) for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
