"""Real clusters for every test that asks for one: started on first use, shared by the whole session, taken down at its end.

`FINETUNE_TEST_CLUSTER=name[,name]` lends running clusters of these names instead and leaves them up; each is used where its mode fits.
"""

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import cluster
from devcluster.cluster import Cluster
from devcluster.settings import Mode

NAME = "test-{mode}-{pid}"


SPEED = ("cluster", "node", "slow")


def pytest_configure(config: pytest.Config) -> None:
    """Asked to stop, the session ends as by Ctrl-C: what its tests have started is ended first.

    What killed processes leave among the temporary files goes with the session; pytest's own directories stay where they are, to be looked at.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="finetune-")
    config.add_cleanup(lambda: shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The fast tests first, so that a failure shows early; within a group the order stays."""
    items.sort(
        key=lambda item: max((SPEED.index(mark) + 1 for mark in SPEED if item.get_closest_marker(mark)), default=0)
    )


def _clusters(mode: Mode, *, gpus: int = 2, nodes: int = 10) -> Iterator[Cluster]:
    for name in filter(None, os.environ.get("FINETUNE_TEST_CLUSTER", "").split(",")):
        lent = cluster.get(name)
        if lent.mode == mode:
            yield lent
            return
    _take_down_leftovers()
    name = NAME.format(mode=mode, pid=os.getpid())
    try:
        yield cluster.up(name, mode, gpus=gpus, nodes=nodes)
    finally:
        cluster.down(name)


def _take_down_leftovers() -> None:
    """End clusters of test sessions that were killed before they could."""
    for name in cluster.existing():
        owner = re.fullmatch(NAME.format(mode=".+", pid=r"(\d+)"), name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            cluster.down(name)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Cluster]:
    """A control plane without nodes: pods can be created and stay pending."""
    yield from _clusters("control-plane")


@pytest.fixture(scope="session")
def kwok_cluster() -> Iterator[Cluster]:
    """A control plane with ten fake nodes of eight GPUs; devcluster/kwok-stages.yaml says how pods run and end there."""
    yield from _clusters("kwok", gpus=8)


@pytest.fixture(scope="session")
def node_cluster() -> Iterator[Cluster]:
    """A cluster with a real node and four simulated GPUs."""
    if os.geteuid() != 0:
        pytest.skip("a real node needs root")
    yield from _clusters("node", gpus=4)
