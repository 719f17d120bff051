"""Make and remove the control group of a cluster's pods, in every hierarchy of cgroup v1 or in the only one of v2."""

import hashlib
import os
import time
from pathlib import Path

from devcluster.errors import DevClusterError

ROOT = Path("/sys/fs/cgroup")
GONE_WITHIN_SECONDS = 10.0


def name(state_dir: Path) -> str:
    """Return the name of the control group below which all pods of the cluster with this state directory are."""
    return f"finetune-devcluster-{hashlib.sha256(str(state_dir).encode()).hexdigest()[:8]}"


def make(group: str) -> None:
    """Make the group where it is missing, ready to have the kubelet's groups below it."""
    if (ROOT / "cgroup.controllers").exists():
        (ROOT / group).mkdir(exist_ok=True)
        enabled = (ROOT / "cgroup.subtree_control").read_text().split()
        for controller in (ROOT / "cgroup.controllers").read_text().split():
            if controller not in enabled:
                (ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
        return
    for hierarchy in ROOT.iterdir():
        if hierarchy.is_symlink() or not (hierarchy / "cgroup.procs").exists():
            continue
        directory = hierarchy / group
        directory.mkdir(exist_ok=True)
        # A new cpuset has no processors and so refuses processes, until it is given its parent's.
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (directory / file).exists() and not (directory / file).read_text().strip():
                (directory / file).write_text((hierarchy / file).read_text())


def remove(group: str) -> None:
    """Remove the group and all below it; its processes must have ended. Raises DevClusterError when some have not."""
    deadline = time.monotonic() + GONE_WITHIN_SECONDS
    for top in (ROOT / group, *ROOT.glob(f"*/{group}")):
        for directory, _, _ in os.walk(top, topdown=False):
            while Path(directory).exists():
                try:
                    Path(directory).rmdir()
                except OSError as busy:
                    # The kernel needs a moment to take the last killed process out of its group.
                    if time.monotonic() > deadline:
                        raise DevClusterError(f"control group {directory} still has processes: {busy}") from busy
                    time.sleep(0.05)
