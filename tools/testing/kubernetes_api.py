"""Use the API server in tests: resources as plain JSON, and pods that change as a kubelet would change them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kubernetes import client, config

from finetune_api.timestamps import current_timestamp
from tools.testing.operator_messages import SPEC
from tools.testing.waiting import until

GROUP, VERSION, PLURAL = "finetune-operator.io", "v1alpha1", "finetunejobs"
LONG_AGO = "2026-01-01T00:00:00Z"
Object = dict[str, Any]


class Api:
    """The official synchronous client, with answers as plain JSON."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        """Connect to the API server of a kubeconfig. All calls use this namespace."""
        self.client: Any = config.new_client_from_config(str(kubeconfig))
        # The generated types refuse plain JSON as a body, which the client accepts.
        self.core: Any = client.CoreV1Api(self.client)
        self.batch: Any = client.BatchV1Api(self.client)
        self.custom: Any = client.CustomObjectsApi(self.client)
        self.namespace = namespace

    def plain(self, answer: Any) -> Any:
        """Return a model of the client as JSON."""
        return self.client.sanitize_for_serialization(answer)

    def create_job(self, name: str, **spec: Any) -> Object:
        """Create a FineTuneJob."""
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "FineTuneJob",
            "metadata": {"name": name},
            "spec": {**SPEC, **spec},
        }
        created: Object = self.custom.create_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, body)
        return created

    def finetune_job(self, name: str) -> Object:
        """Read a FineTuneJob."""
        job: Object = self.custom.get_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, name)
        return job

    def condition(self, name: str, kind: str) -> tuple[str, str] | None:
        """Return status and reason of a condition of a FineTuneJob; None without this condition."""
        for item in self.finetune_job(name).get("status", {}).get("conditions", []):
            if item["type"] == kind:
                return item["status"], item["reason"]
        return None

    def message(self, name: str, kind: str) -> str:
        """Return the message of a condition of a FineTuneJob."""
        conditions = self.finetune_job(name)["status"]["conditions"]
        return next(str(item["message"]) for item in conditions if item["type"] == kind)

    def await_condition(self, name: str, kind: str, status: str, reason: str | None = None) -> Object:
        """Wait for a condition of a FineTuneJob, and return the status of the job."""

        def ask() -> Object | None:
            condition = self.condition(name, kind)
            if condition is None or condition[0] != status or reason not in (None, condition[1]):
                return None
            return dict(self.finetune_job(name)["status"])

        return until(f"{name}: {kind}={status} {reason or ''}", ask)

    def jobs(self, parent: str) -> list[Object]:
        """Return the batch/v1 Jobs that belong to a FineTuneJob."""
        jobs = self.plain(self.batch.list_namespaced_job(self.namespace).items)
        return [
            job for job in jobs if any(owner["name"] == parent for owner in job["metadata"].get("ownerReferences", ()))
        ]

    def job_names(self, parent: str) -> list[str]:
        """Return the names of the batch/v1 Jobs that belong to a FineTuneJob."""
        return sorted(job["metadata"]["name"] for job in self.jobs(parent))

    def pods(self, job: str | None = None) -> list[Object]:
        """Return the pods of the namespace, or of one Job."""
        selector = f"batch.kubernetes.io/job-name={job}" if job else ""
        return list(self.plain(self.core.list_namespaced_pod(self.namespace, label_selector=selector).items))

    def await_pod(self, job: str) -> Object:
        """Wait until a Job has a pod, and return it; of several pods one that has not ended, if there is any."""
        pods = until(f"a pod of {job}", lambda: self.pods(job))
        return min(pods, key=lambda pod: pod["status"].get("phase") in ("Failed", "Succeeded"))

    def set_pod(self, pod: Object, phase: str, state: Object, sidecars: Object | None = None) -> None:
        """Write the status that the kubelet would write for a pod. ``sidecars`` are states by container name."""
        meta = pod["metadata"]
        states = {**(sidecars or {}), pod["spec"]["containers"][0]["name"]: state}
        status = {
            "phase": phase,
            "startTime": current_timestamp(),
            "containerStatuses": [
                {
                    "name": name,
                    "image": "x",
                    "imageID": "x",
                    "ready": phase == "Running",
                    "restartCount": 0,
                    "state": container_state,
                }
                for name, container_state in states.items()
            ],
        }
        self.core.patch_namespaced_pod_status(meta["name"], meta["namespace"], {"status": status})

    @contextmanager
    def forbid_pods(self) -> Iterator[None]:
        """Have a quota refuse every pod of the namespace for the length of a ``with`` block."""
        quota = {"metadata": {"name": "no-pods"}, "spec": {"hard": {"pods": "0"}}}
        self.core.create_namespaced_resource_quota(self.namespace, quota)
        until(
            "the quota counts", lambda: self.core.read_namespaced_resource_quota("no-pods", self.namespace).status.hard
        )
        try:
            yield
        finally:
            self.core.delete_namespaced_resource_quota("no-pods", self.namespace)

    def events(self) -> list[Object]:
        """Return the events that the operator wrote."""
        answer = self.custom.list_namespaced_custom_object("events.k8s.io", "v1", self.namespace, "events")
        return [item for item in answer["items"] if item.get("reportingController", "").startswith("finetune-operator")]

    def run_pod(self, job: str) -> Object:
        """Let the pod of a Job run."""
        pod = self.await_pod(job)
        self.set_pod(pod, "Running", {"running": {"startedAt": current_timestamp()}})
        return pod

    def bind_pod(self, job: str, node: str) -> None:
        """Put the pod of a Job onto a node, as the scheduler does; the node need not exist."""
        name = self.await_pod(job)["metadata"]["name"]
        binding = {"metadata": {"name": name}, "target": {"kind": "Node", "name": node}}
        self.core.create_namespaced_pod_binding(name, self.namespace, binding, _preload_content=False)

    def end_pod(self, job: str, exit_code: int, message: Object | str, sidecars: Object | None = None) -> None:
        """End the container of a Job with a termination message. The pod ends too, unless ``sidecars`` still run."""
        self.end(self.await_pod(job), exit_code, message, sidecars)

    def end(self, pod: Object, exit_code: int, message: Object | str, sidecars: Object | None = None) -> None:
        """End the first container of a pod, as ``end_pod`` does."""
        text = message if isinstance(message, str) else json.dumps(message)
        terminated = {
            "exitCode": exit_code,
            "message": text,
            "startedAt": current_timestamp(),
            "finishedAt": current_timestamp(),
            "reason": "Error" if exit_code else "Completed",
        }
        phase = "Running" if sidecars else "Failed" if exit_code else "Succeeded"
        self.set_pod(pod, phase, {"terminated": terminated}, sidecars)

    def evict_pod(self, job: str, exit_code: int, message: Object) -> None:
        """Evict the pod of a Job, as a drain does, and end its container.

        The Job controller replaces a pod only some seconds after it has ended, so this end is dated long ago.
        """
        pod = self.await_pod(job)
        name = pod["metadata"]["name"]
        body = {"metadata": {"name": name, "namespace": self.namespace}}
        self.core.create_namespaced_pod_eviction(name, self.namespace, body, _preload_content=False)
        times = {"startedAt": LONG_AGO, "finishedAt": LONG_AGO}
        terminated = {"exitCode": exit_code, "message": json.dumps(message), "reason": "Error", **times}
        self.set_pod(pod, "Failed", {"terminated": terminated})

    def pod_token(self, pod: Object, audience: str = GROUP) -> str:
        """Return the token that the kubelet would project into a pod."""
        meta = pod["metadata"]
        bound = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
        request = {"spec": {"audiences": [audience], "boundObjectRef": bound, "expirationSeconds": 3600}}
        answer = self.core.create_namespaced_service_account_token("default", self.namespace, request)
        return str(answer.status.token)
