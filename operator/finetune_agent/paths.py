"""Read the directories of adapter versions on the shared volume, and name adapters in the engine."""

from pathlib import Path
from urllib.parse import unquote

from finetune_api.version_paths import hex_digits

SHORT_DIGEST = 12
"""Number of digits of the digest in the name of a candidate."""


def candidate_name(served_name: str, digest: str) -> str:
    """Return the name under which a version is loaded until it is proven. The served name stays as it is meanwhile."""
    return f"{served_name}@{hex_digits(digest)[:SHORT_DIGEST]}"


def served_name_of(engine_name: str) -> str:
    """Return the served name to which a name in the engine belongs. Only candidates' names contain ``@``."""
    return engine_name.partition("@")[0]


def digest_of_path(root: Path, path: str) -> str | None:
    """Return the digest of the version at ``path``; None if the path is not one of ours below ``root``."""
    try:
        parts = Path(path).relative_to(root).parts
    except ValueError:
        return None
    return f"sha256:{parts[1]}" if len(parts) == 2 else None


def names_on_disk(root: Path) -> list[str]:
    """Return the served names that have a directory below ``root``."""
    return sorted(unquote(entry.name) for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
