"""Run a process as if only some extras of the project were installed."""

import re
import subprocess
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
SITE_CUSTOMIZE = """
import sys
from importlib.machinery import PathFinder

class ExtrasFinder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in {hidden!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = ExtrasFinder
"""


def only_extras(extras: list[str], directory: Path) -> dict[str, str]:
    """Return variables under which Python, and each Python that it starts, imports only what the extras install.

    Args:
        extras: Names of extras of the project.
        directory: An empty directory for the import hook.
    """
    installed = distributions_of(extras)
    hidden = {
        package
        for package, distributions in packages_distributions().items()
        if not installed & {canonical_name(distribution) for distribution in distributions}
    }
    (directory / "sitecustomize.py").write_text(SITE_CUSTOMIZE.format(hidden=hidden))
    return {"PYTHONPATH": str(directory)}


def distributions_of(extras: list[str]) -> set[str]:
    """Return the names of the distributions that the lock file has for some extras."""
    options = [f"--extra={extra}" for extra in extras]
    command = ["uv", "export", "--quiet", "--frozen", "--no-dev", "--no-hashes", "--no-emit-project", *options]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    names = {re.split(r"[\s=;@\[]", line, maxsplit=1)[0] for line in lines if line and line[0] not in " #"}
    return {canonical_name(name) for name in names}


def canonical_name(distribution: str) -> str:
    """Return a distribution's normalised name, by which names are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
