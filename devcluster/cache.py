"""Keeps what is slow to make (a model, a corpus, an environment) in the cache, each under the hash of what it is made from."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from devcluster.binaries import locked
from devcluster.errors import DevClusterError
from devcluster.paths import cache_dir
from devcluster.progress import step


def cached(name: str, recipe: str, title: str, hint: str, make: Callable[[Path], None]) -> Path:
    """Return the directory `<cache>/<name>-<hash of recipe>`; where it is missing, `make(empty directory)` fills it first.

    It appears by a rename once it is complete, so that a kill in between leaves nothing half; two callers at once make it once.
    """
    directory = cache_dir() / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if directory.is_dir():
        return directory
    with locked(directory.with_suffix(".lock")):
        if directory.is_dir():
            return directory
        for leftover in directory.parent.glob(f"{directory.name}.partial-*"):
            shutil.rmtree(leftover)
        partial = directory.parent / f"{directory.name}.partial-{os.getpid()}"
        partial.mkdir()
        with step(title, hint):
            make(partial)
        partial.rename(directory)
    return directory


def install_packages(target: Path, *arguments: str) -> None:
    """Install packages from PyPI into the directory `target` with `uv pip install --target`, without touching any environment.

    Raises DevClusterError with uv's last lines when it fails.
    """
    uv = shutil.which("uv")
    if uv is None:
        raise DevClusterError("uv is needed to fetch packages from PyPI, and is not on PATH: pip install uv")
    command = [uv, "pip", "install", "--quiet", "--target", str(target), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        tail = "\n".join(finished.stderr.splitlines()[-20:])
        raise DevClusterError(f"`{' '.join(command)}` failed:\n{tail}")
