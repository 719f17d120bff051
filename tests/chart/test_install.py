"""`helm install`, upgrade and uninstall on a real API server without a node: what is there before and after each."""

import json
import time
from collections.abc import Iterator

import pytest
import yaml

from devcluster.cluster import Cluster
from tests.chart.helm import CHART, NAMESPACE, Object, helm, render, settings
from tests.chart.inventory import eventually_same, inventory
from tests.cli.run import finetune

pytestmark = pytest.mark.cluster
WITHOUT_NODE = {"uninstall.cleanUp": "false"}  # its Job could not run
ALL_GOES = {"crds.keep": "false"}


@pytest.fixture
def released(empty_cluster: Cluster, namespace: str) -> Iterator[Cluster]:
    """Yield the cluster; remove release and CRDs afterwards."""
    before = inventory(empty_cluster)
    yield empty_cluster
    helm("uninstall", "finetune-operator", "-n", namespace, "--ignore-not-found", cluster=empty_cluster)
    empty_cluster.kubectl("delete", "crd", "--ignore-not-found", "-l", "app.kubernetes.io/name=finetune-operator")
    eventually_same(empty_cluster, before)


def install(cluster: Cluster, values: dict[str, str]) -> str:
    options = settings({**WITHOUT_NODE, **values})
    return helm("upgrade", "--install", "finetune-operator", str(CHART), "-n", NAMESPACE, *options, cluster=cluster)


def test_install_and_uninstall_leave_the_cluster_as_it_was(released: Cluster) -> None:
    before = inventory(released)
    notes = install(released, ALL_GOES)
    assert "kubectl get finetunejobs --watch" in notes
    assert "also deletes every FineTuneJob" in notes
    during = inventory(released) - before
    assert ("Deployment", NAMESPACE, "finetune-operator") in during
    helm("uninstall", "finetune-operator", "-n", NAMESPACE, cluster=released)
    eventually_same(released, before)


def test_where_nothing_is_installed_the_command_line_says_so(released: Cluster) -> None:
    refused = finetune("status", environment={"KUBECONFIG": str(released.kubeconfig)})
    assert refused.code == 1
    assert "finetune-operator is not installed in this cluster" in refused.err


def test_an_uninstall_takes_the_users_objects_with_it_and_waits_for_no_finalizer(released: Cluster) -> None:
    before = inventory(released)
    install(released, ALL_GOES)
    create_job(released)
    helm("uninstall", "finetune-operator", "-n", NAMESPACE, cluster=released)
    eventually_same(released, before)


def test_kept_crds_keep_the_users_objects_and_are_taken_over_again(released: Cluster) -> None:
    assert "helm uninstall` keeps" in install(released, {})
    create_job(released)
    helm("uninstall", "finetune-operator", "-n", NAMESPACE, cluster=released)
    assert (
        released.kubectl("get", "ftj", "-n", "default", "-o", "name").strip() == "finetunejob.finetune-operator.io/kept"
    )
    install(released, {})
    assert (
        released.kubectl("get", "ftj", "-n", "default", "-o", "name").strip() == "finetunejob.finetune-operator.io/kept"
    )


def test_an_upgrade_changes_values_and_keeps_the_users_objects(released: Cluster) -> None:
    install(released, {})
    create_job(released)
    install(released, {"logging.level": "DEBUG"})
    operator_deployment = json.loads(
        released.kubectl("get", "deployment", "finetune-operator", "-n", NAMESPACE, "-o", "json")
    )
    environment = {
        entry["name"]: entry.get("value", "")
        for entry in operator_deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert environment["FINETUNE_OPERATOR_LOG_LEVEL"] == "DEBUG"
    assert (
        released.kubectl("get", "ftj", "-n", "default", "-o", "name").strip() == "finetunejob.finetune-operator.io/kept"
    )


def test_its_pods_are_allowed_where_only_restricted_pods_are(empty_cluster: Cluster) -> None:
    empty_cluster.kubectl("create", "namespace", "restricted")
    empty_cluster.kubectl("label", "namespace", "restricted", "pod-security.kubernetes.io/enforce=restricted")
    try:
        templates = [item["spec"]["template"] for item in render(ALL_GOES) if item["kind"] in ("Deployment", "Job")]
        assert len(templates) == 2
        for number, template in enumerate(templates):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{number}", "namespace": "restricted"}}
            spec = {**template["spec"], "serviceAccountName": "default"}
            created = empty_cluster.kubectl(
                "create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump({**pod, "spec": spec})
            )
            assert "created" in created
    finally:
        empty_cluster.kubectl("delete", "namespace", "restricted", "--wait=false")


def create_job(cluster: Cluster) -> None:
    """Create a FineTuneJob in the namespace default."""
    item: Object = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "kept", "namespace": "default"},
        "spec": {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "s3://a/b"}, "output": {"s3": {"bucket": "abc"}}},
    }
    for _ in range(100):
        if "finetunejobs" in cluster.kubectl("api-resources", "--api-group=finetune-operator.io", "-o", "name"):
            break
        time.sleep(0.1)
    cluster.kubectl("create", "-f", "-", stdin=yaml.safe_dump(item))
