"""Say where things are: the repository, the cache of all clusters, the state with a directory for each cluster."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def cache_dir() -> Path:
    """Return the directory of built programs, the image registry's blobs and unpacked images.

    `FINETUNE_CACHE_DIR` overrides the default, `~/.cache/finetune-operator`.
    """
    chosen = os.environ.get("FINETUNE_CACHE_DIR")
    if chosen:
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator"


def state_root() -> Path:
    """Return the directory that holds one directory per cluster.

    `FINETUNE_DEVCLUSTER_STATE` overrides the default, `~/.local/state/finetune-operator/devcluster`.
    """
    chosen = os.environ.get("FINETUNE_DEVCLUSTER_STATE")
    if chosen:
        return Path(chosen).absolute()
    return (
        Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "finetune-operator" / "devcluster"
    )
