"""Clusters in a directory of the test's own, for the tests that break them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import cluster


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Where the clusters that the test brings up have their state; they are taken down after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_DEVCLUSTER_STATE", str(tmp_path / "state"))
        yield tmp_path / "state"
        for name in cluster.existing():
            cluster.down(name)
