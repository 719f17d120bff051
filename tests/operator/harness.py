"""Run the operator against a real API server, with a stand-in for the kubelet."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from devcluster.cluster import Cluster
from finetune_api.timestamps import current_timestamp
from tests.operator.fake_cluster import PREFLIGHT_PASSED, SPEC, SUCCEEDED

ROOT = Path(__file__).parents[2]
GROUP, VERSION, PLURAL = "finetune-operator.io", "v1alpha1", "finetunejobs"
WITHIN_SECONDS = 60.0
T = TypeVar("T")
Object = dict[str, Any]


def until(what: str, ask: Callable[[], T | None], within: float = WITHIN_SECONDS) -> T:
    """Ask until there is an answer."""
    deadline = time.monotonic() + within
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.02)


class Api:
    """The official synchronous client, its answers as plain JSON."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        """Connect."""
        self.client = config.new_client_from_config(str(kubeconfig))
        self.core = client.CoreV1Api(self.client)
        self.batch = client.BatchV1Api(self.client)
        self.custom = client.CustomObjectsApi(self.client)
        self.namespace = namespace

    def plain(self, answer: Any) -> Any:
        """A model of the client as JSON."""
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
        found: Object = self.custom.get_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, name)
        return found

    def condition(self, name: str, kind: str) -> tuple[str, str] | None:
        """Status and reason of a condition of a FineTuneJob."""
        for item in self.finetune_job(name).get("status", {}).get("conditions", []):
            if item["type"] == kind:
                return item["status"], item["reason"]
        return None

    def await_condition(self, name: str, kind: str, status: str, reason: str | None = None) -> Object:
        """Wait for a condition of a FineTuneJob; returns the status it came with."""

        def ask() -> Object | None:
            found = self.condition(name, kind)
            if found is None or found[0] != status or reason not in (None, found[1]):
                return None
            return dict(self.finetune_job(name)["status"])

        return until(f"{name}: {kind}={status} {reason or ''}", ask)

    def jobs(self, parent: str) -> list[Object]:
        """The batch/v1 Jobs that belong to a FineTuneJob."""
        found = self.plain(self.batch.list_namespaced_job(self.namespace).items)
        return [
            job for job in found if any(owner["name"] == parent for owner in job["metadata"].get("ownerReferences", ()))
        ]

    def job_names(self, parent: str) -> list[str]:
        """Their names."""
        return sorted(job["metadata"]["name"] for job in self.jobs(parent))

    def pods(self, job: str | None = None) -> list[Object]:
        """The pods of the namespace, or of one Job."""
        selector = f"batch.kubernetes.io/job-name={job}" if job else ""
        return list(self.plain(self.core.list_namespaced_pod(self.namespace, label_selector=selector).items))

    def await_pod(self, job: str) -> Object:
        """The pod of a Job, once the Job controller has made it."""
        return until(f"a pod of {job}", lambda: self.pods(job))[0]

    def set_pod(self, pod: Object, phase: str, state: Object) -> None:
        """Say what the kubelet would say about a pod."""
        meta = pod["metadata"]
        container = pod["spec"]["containers"][0]
        status = {
            "phase": phase,
            "startTime": current_timestamp(),
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": "x",
                    "ready": phase == "Running",
                    "restartCount": 0,
                    "state": state,
                }
            ],
        }
        self.core.patch_namespaced_pod_status(meta["name"], meta["namespace"], {"status": status})

    def events(self) -> list[Object]:
        """The events that the operator wrote."""
        answer = self.custom.list_namespaced_custom_object("events.k8s.io", "v1", self.namespace, "events")
        return [item for item in answer["items"] if item.get("reportingController", "").startswith("finetune-operator")]

    def run_pod(self, job: str) -> Object:
        """The pod of a Job runs."""
        pod = self.await_pod(job)
        self.set_pod(pod, "Running", {"running": {"startedAt": current_timestamp()}})
        return pod

    def end_pod(self, job: str, exit_code: int, said: Object | str) -> None:
        """The pod of a Job ends, with this termination message."""
        text = said if isinstance(said, str) else json.dumps(said)
        terminated = {
            "exitCode": exit_code,
            "message": text,
            "startedAt": current_timestamp(),
            "finishedAt": current_timestamp(),
            "reason": "Error" if exit_code else "Completed",
        }
        self.set_pod(self.await_pod(job), "Failed" if exit_code else "Succeeded", {"terminated": terminated})

    def pod_token(self, pod: Object, audience: str = GROUP) -> str:
        """The token that the kubelet would project into a pod."""
        meta = pod["metadata"]
        bound = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
        request = {"spec": {"audiences": [audience], "boundObjectRef": bound, "expirationSeconds": 3600}}
        answer = self.core.create_namespaced_service_account_token("default", self.namespace, request)
        return str(answer.status.token)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Operator:
    """``python -m finetune_operator`` as a process of its own."""

    kubeconfig: Path
    namespace: str
    log: Path
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> "Operator":
        """Start it and, unless told otherwise, wait until it is ready."""
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT / "operator"),
            "FINETUNE_OPERATOR_TRAINER_IMAGE": "trainer:1",
            "FINETUNE_OPERATOR_OPERATOR_IMAGE": "operator:1",
            "FINETUNE_OPERATOR_KUBECONFIG": str(self.kubeconfig),
            "FINETUNE_OPERATOR_NAMESPACES": self.namespace,
            "FINETUNE_OPERATOR_LISTEN_HOST": "127.0.0.1",
            "FINETUNE_OPERATOR_LISTEN_PORT": str(self.port),
            "FINETUNE_OPERATOR_RETRY_BACKOFF_SECONDS": "0.1",
            "FINETUNE_OPERATOR_PROGRESS_INTERVAL_SECONDS": "0.1",
            **self.settings,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "finetune_operator"], env=environment, stdout=log, stderr=log
            )
        if wait:
            until("the operator is ready", lambda: self.get("/readyz")[0] == 200 or self.failed())
        return self

    def failed(self) -> None:
        """Raise if the process has ended."""
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-4000:]

    def kill(self) -> None:
        """SIGKILL."""
        self.stop(signal.SIGKILL)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it; its exit status."""
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(timeout=30)

    def get(self, path: str) -> tuple[int, str]:
        """HTTP status and body; 0 when nobody answers."""
        return self.request("GET", path)

    def post(self, path: str, body: Object | bytes, token: str | None) -> tuple[int, Object]:
        """POST a report; HTTP status and the answer."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, text = self.request("POST", path, content, {"Authorization": f"Bearer {token}"} if token else {})
        return status, json.loads(text)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """One HTTP request."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return 0, ""

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all samples that have these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(name) and all(f'{label}="{value}"' in line for label, value in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total


class Kubelet(threading.Thread):
    """Let the pods of one FineTuneJob run and end, while the ``with`` block lasts."""

    def __init__(self, api: Api, parent: str, script: Callable[[str], tuple[int, Object] | None]) -> None:
        """``script(job name)`` gives exit code and termination message; None: the pod goes on running."""
        super().__init__(daemon=True)
        self.api = api
        self.parent = parent
        self.script = script
        self.stopping = threading.Event()

    def run(self) -> None:
        """Poll; a pod may vanish or change between two calls."""
        while not self.stopping.wait(0.05):
            try:
                for pod in self.api.pods():
                    if pod["metadata"].get("annotations", {}).get(f"{GROUP}/finetunejob") == self.parent:
                        self.move(pod)
            except ApiException as error:
                if error.status not in (404, 409):
                    raise

    def move(self, pod: Object) -> None:
        """One step of one pod."""
        phase = pod["status"].get("phase")
        job = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]
        if phase == "Pending":
            self.api.set_pod(pod, "Running", {"running": {"startedAt": current_timestamp()}})
        elif phase == "Running":
            ending = self.script(job)
            if ending is not None:
                self.api.end_pod(job, *ending)

    def __enter__(self) -> "Kubelet":
        """Begin."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread."""
        self.stopping.set()
        self.join()


def good_run(job: str) -> tuple[int, Object]:
    """Every pod does what it should."""
    return 0, PREFLIGHT_PASSED if "preflight" in job else SUCCEEDED


def install_crds(cluster: Cluster) -> None:
    """Both CRDs, served."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(ROOT / "crds"))
