"""A namespace of a real API server with an operator of its own, and the parts of the kubelet and of the agents."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from kubernetes.client.exceptions import NotFoundException

from devcluster.cluster import Cluster
from finetune_api.timestamps import current_timestamp
from tests.adapterdeployment.groups import V1, uri
from tools.testing.kubernetes_api import Api, Object
from tools.testing.operator_process import Operator
from tools.testing.reader import Reader
from tools.testing.waiting import until

ADP = "adapterdeployments"
GROUP = "finetune-operator.io"
AGENT = "finetune-agent"


class ServingNamespace:
    """A namespace with an operator of its own."""

    def __init__(self, cluster: Cluster, namespace: str, log: Path) -> None:
        """Connect; the operator is not started yet."""
        self.cluster, self.namespace = cluster, namespace
        self.api = Api(cluster.kubeconfig, namespace)
        self.reader = Reader(cluster.kubeconfig, namespace)
        self.operator = Operator(cluster.kubeconfig, namespace, log)

    def kubectl(self, *arguments: str, stdin: Object | None = None) -> str:
        return self.cluster.kubectl(
            "-n", self.namespace, *arguments, stdin=None if stdin is None else json.dumps(stdin)
        )

    def get(self, kind: str, name: str) -> Object:
        return self.reader.get(kind, name)

    def deployment(self) -> Object:
        return self.get("deployment", "web")

    def agent(self) -> Object | None:
        """Return the injected sidecar."""
        containers = self.deployment()["spec"]["template"]["spec"].get("initContainers", [])
        return next((container for container in containers if container["name"] == AGENT), None)

    def apply_adapter(self, name: str, digest: str = V1, **spec: Any) -> None:
        self.kubectl("apply", "-f", "-", stdin=build_adapter(name, digest, **spec))

    def conditions(self, name: str) -> dict[str, tuple[str, str, str]]:
        conditions = self.get(ADP, name).get("status", {}).get("conditions", [])
        return {item["type"]: (item["status"], item["reason"], item["message"]) for item in conditions}

    def await_condition(self, name: str, kind: str, status: str, reason: str) -> str:
        """Wait for a condition; its message."""

        def ask() -> str | None:
            condition = self.conditions(name).get(kind)
            return (condition[2] or " ") if condition and condition[:2] == (status, reason) else None

        return until(f"{name}: {kind}={status} {reason}", ask)

    def desired(self) -> list[Object]:
        """Return what the ConfigMap tells the agents to serve: nothing before it exists."""
        config_map = self.reader.find("configmap", "finetune-adapters-web")
        return list(json.loads(config_map["data"]["desired.json"])["adapters"]) if config_map else []

    def pods(self) -> list[Object]:
        """Return the pods with an agent, all running, once the Deployment has all of them."""

        def ask() -> list[Object] | None:
            assigned_pods = [
                pod for pod in self.api.pods() if f"{GROUP}/deployment" in pod["metadata"].get("annotations", {})
            ]
            living = [pod for pod in assigned_pods if "deletionTimestamp" not in pod["metadata"]]
            for pod in living:  # the Deployment replaces a pod only when the one before takes traffic
                if pod["status"].get("phase") == "Pending":
                    with suppress(NotFoundException):  # the Deployment has replaced it since
                        self.run(pod)
            return living if len(living) == self.deployment()["spec"]["replicas"] else None

        return until("the pods", ask)

    def await_rollout(self) -> int:
        """Wait until all pods are of the newest template; return the Deployment's generation."""

        def ask() -> int | None:
            self.pods()
            deployment = self.deployment()
            counts = {deployment["status"].get(name) for name in ("replicas", "updatedReplicas")}
            generation: int = deployment["metadata"]["generation"]
            return generation if counts == {deployment["spec"]["replicas"]} else None

        return until("all pods are replaced", ask)

    def run(self, pod: Object, ready: bool = True) -> None:
        """Do the kubelet's part: the pod runs, and takes traffic or does not."""
        status = "True" if ready else "False"
        conditions = [
            {"type": kind, "status": status, "lastTransitionTime": current_timestamp()}
            for kind in ("Ready", "ContainersReady")
        ]
        body = {"status": {"phase": "Running", "startTime": current_timestamp(), "conditions": conditions}}
        self.api.core.patch_namespaced_pod_status(pod["metadata"]["name"], self.namespace, body)

    def report(self, pod: Object, *adapters: Object) -> None:
        """Do the agent's part."""
        body = {"engineReady": True, "ready": True, "adapters": list(adapters)}
        assert self.operator.post("/v1/agents", body, self.api.pod_token(pod))[0] == 200


def build_adapter(name: str, digest: str, **spec: Any) -> Object:
    """Build an AdapterDeployment for a digest in S3."""
    source = {
        "uri": uri(digest),
        "digest": digest,
        "s3": {"endpoint": "http://s3:9000"},
        "secretRef": {"name": "keys"},
    }
    return {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "AdapterDeployment",
        "metadata": {"name": name},
        "spec": {
            "adapter": source,
            "servedName": f"{name}-name",
            "target": {"deploymentRef": {"name": "web"}},
            **spec,
        },
    }


def says(name: str, assigned: str, active: str | None, state: str = "Active", **fields: str) -> Object:
    return {
        "deployment": name,
        "servedName": f"{name}-name",
        "digest": assigned,
        "state": state,
        **({"activeDigest": active} if active else {}),
        **fields,
    }


def manifest(replicas: int = 2, env: list[Object] | None = None, **pod: Any) -> Object:
    """Return a user's Deployment, with what users have in them."""
    container: Object = {
        "name": "vllm",
        "image": "vllm/vllm-openai:v0.32.0",
        "args": ["--model=/models/base", "--enable-lora", "--max-lora-rank=32"],
        "ports": [{"containerPort": 8000}],
        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }
    if env is not None:
        container["env"] = env
    spec = {
        "initContainers": [{"name": "warm-up", "image": "busybox", "command": ["true"]}],
        "containers": [container, {"name": "logger", "image": "logger"}],
        "volumes": [{"name": "models", "emptyDir": {}}],
        **pod,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": spec},
        },
    }
