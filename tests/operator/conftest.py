"""A control plane, a namespace for each test module, and the operator that watches it."""

import uuid
from collections.abc import Iterator

import pytest

from devcluster.cluster import Cluster
from tools.testing.kubernetes_api import Api
from tools.testing.operator_process import Operator, install_crds


@pytest.fixture(scope="session")
def cluster(control_plane: Cluster) -> Cluster:
    """A control plane with both CRDs."""
    install_crds(control_plane)
    return control_plane


@pytest.fixture(scope="module")
def api(cluster: Cluster) -> Iterator[Api]:
    """The API, in a namespace that is deleted afterwards."""
    name = f"operator-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    yield Api(cluster.kubeconfig, name)
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def operator(cluster: Cluster, api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator, ready."""
    process = Operator(cluster.kubeconfig, api.namespace, tmp_path_factory.mktemp("operator") / "log")
    try:
        yield process.start()
    finally:
        if process.process is not None and process.process.poll() is None:
            process.stop()
