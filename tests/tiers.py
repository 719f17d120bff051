"""Tiers of tests: what a test needs to run. A marker on the test or its module decides, then this module's rules."""

import importlib.abc
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

TIERS = ("unit", "trains", "cluster", "node", "gpu")
"""All tiers, the cheapest first."""
TIER_OF_DIRECTORY = {"artifacts": "cluster", "estimate": "trains", "trainer": "trains", "e2e": "node"}
"""Tier of the tests in a directory below `tests/`. In the other directories fixtures decide."""
TIER_OF_FIXTURE = {
    "node_cluster": "node",
    "control_plane": "cluster",
    "kwok_cluster": "cluster",
    "s3_server": "cluster",  # its program is built with those of the cluster
}
"""Tier of the tests that use a fixture in a directory without a tier. The first fixture that a test uses counts."""
UNIT_MARKER = "pytest.mark.unit"
TESTS = Path(__file__).parent


class NoTorch(importlib.abc.MetaPathFinder):
    """Import hook that refuses torch, which would make the unit tier slow."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        """Raise ImportError for torch; find nothing else."""
        if fullname == "torch":
            raise ImportError("The unit tier does not import torch. Mark the test with pytest.mark.trains.")
        return None


def assign(item: pytest.Item) -> None:
    """Give a test the marker of its tier, unless the test or its module has one.

    Raises:
        pytest.UsageError: the test or its module has the markers of several tiers.
    """
    item_tiers = tiers_of(item)
    if len(item_tiers) > 1:
        raise pytest.UsageError(f"{item.nodeid} has the tiers {', '.join(item_tiers)}. Keep one marker.")
    if not item_tiers:
        fixtures = getattr(item, "fixturenames", ())
        by_fixture = next((tier for name, tier in TIER_OF_FIXTURE.items() if name in fixtures), "unit")
        item.add_marker(_tier_of_directory(item.path) or by_fixture)


def tiers_of(item: pytest.Item) -> list[str]:
    """List the tiers whose marker a test has."""
    return [tier for tier in TIERS if item.get_closest_marker(tier)]


def order(item: pytest.Item) -> int:
    """Return the position of a test's tier among all tiers."""
    return TIERS.index(tiers_of(item)[0])


def may_have_unit_tests(path: Path) -> bool:
    """Tell whether a path may have unit tests: its directory has no other tier, or the file has a unit marker."""
    if path.is_dir() or path.name == "conftest.py":
        return True
    return _tier_of_directory(path) is None or UNIT_MARKER in path.read_text()


def _tier_of_directory(path: Path) -> str | None:
    return TIER_OF_DIRECTORY.get(path.relative_to(TESTS).parts[0])
