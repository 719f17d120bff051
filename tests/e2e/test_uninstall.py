"""Deleting an AdapterDeployment, and `helm uninstall`, remove all that they added. Runs last, because of its name."""

import subprocess

import pytest

from devcluster.demo import RELEASE
from tests.e2e.conftest import Demo, cluster_wide
from tests.e2e.engine import BASE
from tests.e2e.namespace import SYSTEM_NAMESPACE, Object

pytestmark = [pytest.mark.node, pytest.mark.timeout(3000)]
AGENT = "finetune-agent"
REVISION = "deployment.kubernetes.io/revision"


def test_deleting_the_adapter_deployments_leaves_the_deployment_as_it_was(demo: Demo) -> None:
    before = next((item for item in demo.deployments.of("vllm") if not has_agent(item)), None)
    if before is None:
        pytest.skip("the cluster was lent with the demo's AdapterDeployment on it")
    assert has_agent(demo.namespace.get("deployment", "vllm"))
    demo.namespace.kubectl("delete", "adapterdeployments", "--all")
    demo.namespace.until("the agent is gone", lambda: not has_agent(demo.namespace.get("deployment", "vllm")), 120)
    demo.namespace.kubectl("rollout", "status", "deployment/vllm", "--timeout=300s")
    after = demo.namespace.get("deployment", "vllm")
    assert after["spec"] == before["spec"]
    assert own_metadata(after) == own_metadata(before)
    assert demo.namespace.find("configmap", "finetune-adapters-vllm") is None
    demo.namespace.until("only the base is served", lambda: demo.engine.models() == [BASE], 30)


def test_helm_uninstall_leaves_the_cluster_as_it_was(demo: Demo) -> None:
    helm = [str(demo.cluster.bin("helm")), f"--kubeconfig={demo.cluster.kubeconfig}", f"--namespace={SYSTEM_NAMESPACE}"]
    completed = subprocess.run(
        [*helm, "uninstall", RELEASE, "--wait", "--timeout=5m"], capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, f"{completed.stdout}{completed.stderr}\n{demo.system.diagnosis()}"
    assert cluster_wide(demo.cluster) == demo.cluster_wide_before
    for kind in ("deployments", "services", "serviceaccounts", "jobs", "roles", "rolebindings", "networkpolicies"):
        assert demo.system.all(kind, "app.kubernetes.io/name=finetune-operator") == []


def has_agent(deployment: Object) -> bool:
    """Tell whether our sidecar is in the pods of a Deployment."""
    pod = deployment["spec"]["template"]["spec"]
    return AGENT in [container["name"] for container in pod.get("initContainers", [])]


def own_metadata(deployment: Object) -> Object:
    """Return the labels and annotations of a Deployment, without the counter of the Deployment controller."""
    meta = deployment["metadata"]
    annotations = {name: value for name, value in meta.get("annotations", {}).items() if name != REVISION}
    return {"labels": meta.get("labels", {}), "annotations": annotations}
