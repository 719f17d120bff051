"""A cluster of these tests' own, because the others' has the CRDs already, and the namespace of the release."""

import os
from collections.abc import Iterator

import pytest

from devcluster import cluster
from devcluster.cluster import Cluster
from tests.chart.helm import NAMESPACE


@pytest.fixture(scope="package")
def empty_cluster() -> Iterator[Cluster]:
    """Yield a control plane that nothing was installed into."""
    name = f"chart-{os.getpid()}"
    try:
        yield cluster.up(name)
    finally:
        cluster.down(name)


@pytest.fixture(scope="package")
def namespace(empty_cluster: Cluster) -> str:
    """Return the namespace that the chart is installed into."""
    empty_cluster.kubectl("create", "namespace", NAMESPACE)
    return NAMESPACE
