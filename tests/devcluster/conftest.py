"""Clusters in a directory of the test's own, for the tests that break them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import cluster


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Give the clusters of the test a directory for their state, and take them down afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_DEVCLUSTER_STATE", str(tmp_path / "state"))
        yield tmp_path / "state"
        for name in cluster.existing():
            cluster.down(name)
