"""Tiers of tests, and real clusters: started on first use, shared by the session, taken down at its end.

`FINETUNE_TEST_CLUSTER=name[,name]` lends running clusters of these names and leaves them up; each is used where its
mode fits.
"""

import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import cluster
from devcluster.cluster import Cluster
from devcluster.settings import Mode
from tests import tiers
from tools.chaos import INJECTED
from tools.testing.crds import install_crds

NAME = "test-{mode}-{pid}"


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the session: SIGTERM ends it as Ctrl-C does, and its temporary files are removed.

    pytest's own directories stay, to be looked at. A session of the unit tier cannot import torch.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Sums depend on the number of threads in their last bits. One thread: two workers share two processors.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="finetune-")
    if config.option.markexpr == "unit":
        sys.meta_path.insert(0, tiers.NoTorch())
    config.add_cleanup(lambda: shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files without tests of the only tier that runs: importing all of them takes a minute."""
    tier = tiers.selected(config.option.markexpr)
    return True if tier and not tiers.may_have_tests_of(tier, collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its tier, run the cheap ones first, and let reports say which fault a test injects."""
    for item in items:
        tiers.assign(item)
        if chaos := item.get_closest_marker("chaos"):
            item.user_properties.append((INJECTED, chaos.args[0]))
    items.sort(key=tiers.order)


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
    """Yield a control plane without nodes: pods can be created and stay pending."""
    yield from _clusters("control-plane")


@pytest.fixture(scope="session")
def cluster_with_crds(control_plane: Cluster) -> Cluster:
    """Return the control plane, with both CRDs."""
    install_crds(control_plane)
    return control_plane


@pytest.fixture(scope="session")
def kwok_cluster() -> Iterator[Cluster]:
    """Yield a control plane with ten fake nodes of eight GPUs. devcluster/kwok-stages.yaml says how pods end."""
    yield from _clusters("kwok", gpus=8)


@pytest.fixture(scope="session")
def node_cluster() -> Iterator[Cluster]:
    """Yield a cluster with a real node and four simulated GPUs."""
    if os.geteuid() != 0:
        pytest.skip("a real node needs root")
    yield from _clusters("node", gpus=4)
