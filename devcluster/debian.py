"""Get Debian's packages: install them on this machine, or unpack the files of one into a directory."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from devcluster import commands
from devcluster.binaries import locked
from devcluster.errors import DevClusterError
from devcluster.paths import cache_dir
from devcluster.progress import step

_LOCK_TIMEOUT = "DPkg::Lock::Timeout=600"
"""How long apt-get waits for another one, for example that of unattended upgrades."""
# Offline, systemd does not start what a package wants to start: each cluster has a containerd of its own.
_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "SYSTEMD_OFFLINE": "1", "LC_ALL": "C"}


def install(packages: Mapping[str, str], purpose: str) -> None:
    """Install the Debian packages whose programs are not there yet. Of several callers at once one installs at a time.

    Args:
        packages: The program (its name on PATH, or its path) and the package that has it.
        purpose: What needs them, for the message.

    Raises:
        DevClusterError: Programs are missing, and this user or this machine cannot install them, or apt-get failed.
    """
    missing = _find_missing(packages)
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise DevClusterError(
            f"{purpose} needs {', '.join(missing)}, and only root on Debian can install them with apt-get; "
            "please install them by hand"
        )
    with locked(cache_dir() / "apt-get.lock"):
        if missing := _find_missing(packages):
            with step(f"installing {' '.join(missing)}"):
                commands.run(["apt-get", "update"], environment=_ENVIRONMENT)
                options = ["-o", _LOCK_TIMEOUT, "--yes", "--no-install-recommends"]
                commands.run(["apt-get", "install", *options, *missing], environment=_ENVIRONMENT)


def _find_missing(packages: Mapping[str, str]) -> list[str]:
    return sorted({package for program, package in packages.items() if shutil.which(program) is None})


def unpack(package: str, target: Path) -> None:
    """Download a Debian package and unpack its files below `target`; nothing is installed. Needs no root.

    Raises:
        DevClusterError: This machine has no apt-get, or its lists do not have the package.
    """
    if shutil.which("apt-get") is None:
        raise DevClusterError(f"Debian's package {package} is needed, and this machine has no apt-get to fetch it with")
    with tempfile.TemporaryDirectory() as scratch:
        # _apt, the user who downloads for root, must be able to write there.
        Path(scratch).chmod(0o777)
        directory = Path(scratch)
        try:
            commands.run(["apt-get", "download", package], directory=directory, environment=_ENVIRONMENT)
        except DevClusterError:
            commands.run(["apt-get", "update"], environment=_ENVIRONMENT)
            commands.run(["apt-get", "download", package], directory=directory, environment=_ENVIRONMENT)
        archive = next(directory.glob(f"{package}_*.deb"))
        commands.run(["dpkg-deb", "--extract", str(archive), str(target)])
