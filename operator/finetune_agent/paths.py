"""Read the directories of adapter versions on the shared volume, and name adapters in the engine."""

from pathlib import Path
from urllib.parse import unquote

from finetune_api.version_paths import names_version, version_name


def candidate_name(served_name: str, digest: str) -> str:
    """Return the name under which a version is loaded until it is proven. The served name stays as it is meanwhile.

    The name of one version is its own candidate.
    """
    return served_name if names_version(served_name) else version_name(served_name, digest)


def served_name_of_path(root: Path, path: str) -> str | None:
    """Return the served name to which a loaded version belongs; None if its path is not one of ours below ``root``."""
    return unquote(Path(path).parent.name) if digest_of_path(root, path) is not None else None


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
