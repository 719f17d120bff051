"""Keep what is slow to make (models, corpora, environments) in the cache, under the hash of its recipe."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from devcluster import commands
from devcluster.binaries import locked
from devcluster.errors import DevClusterError
from devcluster.paths import cache_dir
from devcluster.progress import step


def cached(name: str, recipe: str, title: str, hint: str, make: Callable[[Path], None]) -> Path:
    """Return the directory `<cache>/<name>-<hash of recipe>`, and fill it first where it is missing.

    A rename makes it appear when it is complete, so that a killed process leaves no incomplete one. If two callers ask
    at once, one fills it and the other waits.

    Args:
        name: The beginning of the directory's name.
        recipe: All that the content depends on.
        title: Title of the step in the display.
        hint: Usual duration.
        make: Fills an empty directory.
    """
    directory = cache_dir() / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if directory.is_dir():
        return directory
    with locked(directory.with_suffix(".lock")):
        if directory.is_dir():
            return directory
        for unfinished in directory.parent.glob(f"{directory.name}.partial-*"):
            shutil.rmtree(unfinished)
        partial = directory.parent / f"{directory.name}.partial-{os.getpid()}"
        partial.mkdir()
        with step(title, hint):
            make(partial)
        partial.rename(directory)
    return directory


def install_packages(target: Path, *arguments: str) -> None:
    """Install packages from PyPI into a directory with `uv pip install --target`; no environment changes.

    Args:
        target: The directory.
        arguments: Further arguments of uv, among them the packages.

    Raises:
        DevClusterError: uv is not there, or failed.
    """
    uv = shutil.which("uv")
    if uv is None:
        raise DevClusterError("uv is needed to fetch packages from PyPI, and is not on PATH: pip install uv")
    commands.run([uv, "pip", "install", "--quiet", "--target", str(target), *arguments])
