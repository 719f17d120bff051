"""Tiers of tests: what a test needs to run. A marker on the test or its module decides, then this module's rules."""

import importlib.abc
import re
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
MARKER_OF_MODULE = re.compile(rf"^pytestmark = .*pytest\.mark\.({'|'.join(TIERS)})\b", re.MULTILINE)
"""The marker of all tests of a module; a test that has another one too is refused."""
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


def selected(expression: str) -> str | None:
    """Return the only tier that a marker expression lets run; None if it is none of those of tools/run_tests.py."""
    tier = expression.removesuffix(" and exhaustive").removesuffix(" and not exhaustive")
    return tier if tier in TIERS else None


def may_have_tests_of(tier: str, path: Path) -> bool:
    """Tell whether a path may have tests of a tier, without importing it: that takes seconds where it imports torch."""
    if path.is_dir() or path.name == "conftest.py":
        return True
    text = path.read_text()
    if of_module := MARKER_OF_MODULE.search(text):
        return of_module[1] == tier
    if f"pytest.mark.{tier}" in text:
        return True
    of_directory = _tier_of_directory(path)
    # Fixtures give a test one of the other tiers, and a test need not name the fixtures of its fixtures.
    return of_directory == tier if of_directory else tier in ("unit", *TIER_OF_FIXTURE.values())


def _tier_of_directory(path: Path) -> str | None:
    return TIER_OF_DIRECTORY.get(path.relative_to(TESTS).parts[0])
