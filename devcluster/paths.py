"""Name the directories of the repository, of the cache that all clusters share, and of the clusters' state."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def cache_dir() -> Path:
    """Return the directory of built programs, the image registry's blobs and unpacked images.

    `FINETUNE_CACHE_DIR` overrides the default, `~/.cache/finetune-operator`.
    """
    override = os.environ.get("FINETUNE_CACHE_DIR")
    if override:
        return Path(override).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator"


def state_root() -> Path:
    """Return the directory that holds one directory per cluster.

    `FINETUNE_DEVCLUSTER_STATE` overrides the default, `~/.local/state/finetune-operator/devcluster`.
    """
    override = os.environ.get("FINETUNE_DEVCLUSTER_STATE")
    if override:
        return Path(override).absolute()
    return (
        Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "finetune-operator" / "devcluster"
    )
