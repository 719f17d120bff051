"""A namespace with a running operator."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import binaries
from devcluster.cluster import Cluster
from tests.adapterdeployment.serving import ServingNamespace
from tools.testing.crds import apply_crds
from tools.testing.waiting import until

EXTENSION_CRDS = (
    "inference.networking.x-k8s.io_inferencemodelrewrites.yaml",
    "inference.networking.k8s.io_inferencepools.yaml",
)


@pytest.fixture
def serving(cluster_with_crds: Cluster, tmp_path: Path) -> Iterator[ServingNamespace]:
    """Yield a namespace of its own, and a running operator that watches it."""
    namespace = f"adp-{uuid.uuid4().hex[:8]}"
    cluster_with_crds.kubectl("create", "namespace", namespace)
    serving_namespace = ServingNamespace(cluster_with_crds, namespace, tmp_path / "operator.log")
    try:
        until(
            "the service account",
            lambda: cluster_with_crds.kubectl(
                "-n", namespace, "get", "serviceaccount", "default", "--ignore-not-found"
            ),
        )
        serving_namespace.operator.settings["FINETUNE_OPERATOR_REPORT_URL"] = "http://operator:8080"
        serving_namespace.operator.start()
        yield serving_namespace
    finally:
        serving_namespace.operator.end()
        cluster_with_crds.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.fixture
def gateway(serving: ServingNamespace) -> Iterator[None]:
    """Install the CRDs of the Gateway API Inference Extension."""
    directory = binaries.download_module(binaries.INFERENCE_EXTENSION) / "config" / "crd" / "bases"
    files = [directory / name for name in EXTENSION_CRDS]
    apply_crds(serving.cluster, files)
    yield
    serving.cluster.kubectl("delete", *(argument for file in files for argument in ("-f", str(file))))
