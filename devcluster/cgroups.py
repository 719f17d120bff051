"""Make and remove the control group of a cluster's pods, for cgroup v1 (in each hierarchy) and v2."""

import hashlib
import os
import time
from pathlib import Path

from devcluster.errors import DevClusterError

ROOT = Path("/sys/fs/cgroup")
GONE_WITHIN_SECONDS = 10.0
WEIGHT = 3
"""Share of the processors that all pods together get on a busy machine, relative to one other process.

The default of 1 is the share of one thread: beside the tests of other tiers, a trainer would get a fifth of a core.
"""


def name(state_dir: Path) -> str:
    """Return the name of the control group below which all pods of the cluster with this state directory are."""
    return f"finetune-devcluster-{hashlib.sha256(str(state_dir).encode()).hexdigest()[:8]}"


def make(group: str) -> None:
    """Make the group if it is missing, and enable all controllers for the kubelet's groups below it."""
    if (ROOT / "cgroup.controllers").exists():
        (ROOT / group).mkdir(exist_ok=True)
        enabled = (ROOT / "cgroup.subtree_control").read_text().split()
        for controller in (ROOT / "cgroup.controllers").read_text().split():
            if controller not in enabled:
                (ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
        (ROOT / group / "cpu.weight").write_text(str(100 * WEIGHT))
        return
    for hierarchy in ROOT.iterdir():
        if hierarchy.is_symlink() or not (hierarchy / "cgroup.procs").exists():
            continue
        directory = hierarchy / group
        directory.mkdir(exist_ok=True)
        if (shares := directory / "cpu.shares").exists():
            shares.write_text(str(1024 * WEIGHT))
        # A new cpuset has no processors and so refuses processes, until it is given its parent's.
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (directory / file).exists() and not (directory / file).read_text().strip():
                (directory / file).write_text((hierarchy / file).read_text())


def remove(group: str) -> None:
    """Remove the group and all groups below it, after their processes have ended.

    Raises:
        DevClusterError: Some processes have not ended.
    """
    deadline = time.monotonic() + GONE_WITHIN_SECONDS
    for top in (ROOT / group, *ROOT.glob(f"*/{group}")):
        for directory, _, _ in os.walk(top, topdown=False):
            while Path(directory).exists():
                try:
                    Path(directory).rmdir()
                except OSError as error:
                    # The kernel needs a moment to take the last killed process out of its group.
                    if time.monotonic() > deadline:
                        raise DevClusterError(f"control group {directory} still has processes: {error}") from error
                    time.sleep(0.05)
