"""Name the directory of a version on the shared volume, and the variable that names it to the engine."""

from pathlib import Path
from urllib.parse import quote

VARIABLE_PREFIX = "FINETUNE_PATH_"


def hex_digits(digest: str) -> str:
    """Return ``sha256:<64 digits>`` without its prefix."""
    return digest.removeprefix("sha256:")


def adapter_directory(root: Path, served_name: str) -> Path:
    """Return the directory of all versions of a served name. Slashes are escaped, so no name leads out of ``root``."""
    return root / quote(served_name, safe="")


def version_directory(root: Path, served_name: str, digest: str) -> Path:
    """Return the directory of one version. It never changes: another version has another path."""
    return adapter_directory(root, served_name) / hex_digits(digest)


def path_variable(deployment: str) -> str:
    """Return the variable with the directory of an AdapterDeployment's version: ``FINETUNE_PATH_SUPPORT_BOT``.

    The engine's arguments name it as ``$(FINETUNE_PATH_SUPPORT_BOT)``.
    """
    return VARIABLE_PREFIX + deployment.upper().replace("-", "_").replace(".", "_")
