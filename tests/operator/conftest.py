"""A control plane, a namespace for each test module, and the operator that watches it."""

import signal
import uuid
from collections.abc import Iterator

import pytest

from devcluster.cluster import Cluster
from tools.testing.kubernetes_api import Api
from tools.testing.operator_process import Operator


@pytest.fixture(scope="session")
def cluster(cluster_with_crds: Cluster) -> Cluster:
    """Return a control plane with both CRDs."""
    return cluster_with_crds


@pytest.fixture(scope="module")
def api(cluster: Cluster) -> Iterator[Api]:
    """Yield the API, in a namespace that is deleted afterwards."""
    name = f"operator-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    yield Api(cluster.kubeconfig, name)
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def operator(cluster: Cluster, api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """Yield the operator, ready."""
    process = Operator(cluster.kubeconfig, api.namespace, tmp_path_factory.mktemp("operator") / "log")
    try:
        yield process.start()
    finally:
        process.end(signal.SIGTERM)
