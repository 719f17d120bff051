"""Roll new versions out to all pods of a Deployment at once, again and again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import process
from bench.agent.pod import publish_adapter
from bench.operator.at_once import follow
from bench.operator.process import cpu_seconds
from bench.rollout.kubelet import Kubelet
from bench.rollout.pods import SECRET, Pod, address_of
from bench.rollout.timeline import PodTimes, read_times
from devcluster.cluster import Cluster
from finetune_api.messages import DesiredVersion
from tools.testing.kubernetes_api import GROUP, VERSION, Api, Object
from tools.testing.operator_process import Operator
from tools.testing.reader import Reader
from tools.testing.s3_server import S3Server, running_s3
from tools.testing.waiting import free_port, wait_for

DEPLOYMENT, NAME, SERVED_NAME = "web", "bot", "bot"
PLURAL = "adapterdeployments"
START_SECONDS, ROLLOUT_SECONDS = 600.0, 300.0
PAUSE_SECONDS = 3.0
"""Pause before each roll-out, in which operator and agents become idle."""


@dataclass(frozen=True)
class Rollout:
    """One roll-out. All times are in seconds.

    Attributes:
        status_seconds: From the change until the status said that all pods serve the version and are in the Service.
        operator_cpu: CPU time of the operator until then.
        agent_cpu: CPU time of each agent until then, on average.
        pods: The times of each pod.
    """

    status_seconds: float
    operator_cpu: float
    agent_cpu: float
    pods: list[PodTimes]


class Served:
    """Notes when the status of the AdapterDeployment first says that all pods serve a version."""

    def __init__(self, api: Api) -> None:
        """Watch the AdapterDeployments of a namespace."""
        self.at: dict[str, float] = {}
        follow(api.custom.list_namespaced_custom_object, [GROUP, VERSION, api.namespace, PLURAL], self._take)

    def _take(self, resource: Object) -> None:
        status = resource.get("status") or {}
        conditions = status.get("conditions") or []
        if any(item["type"] == "Ready" and item["status"] == "True" for item in conditions):
            self.at.setdefault(status["active"]["digest"], time.time())


def measure(
    cluster: Cluster, namespace: str, pods: int, rounds: int, directory: Path, show: Callable[[str], None]
) -> list[Rollout]:
    """Start the pods, roll out a new version ``rounds`` times, and return what each took.

    Args:
        cluster: A control plane with both CRDs.
        namespace: Its namespace for this.
        pods: Number of pods.
        rounds: Number of roll-outs.
        directory: Receives all files and logs.
        show: Receives how far it is.
    """
    api, reader = Api(cluster.kubeconfig, namespace), Reader(cluster.kubeconfig, namespace)
    with ExitStack() as stack:
        s3 = stack.enter_context(running_s3(directory / "s3"))
        bucket = s3.create_bucket("adapters")
        versions = [publish_adapter(s3, bucket, f"v{n}", directory / f"v{n}") for n in range(rounds + 1)]
        operator = Operator(cluster.kubeconfig, namespace, directory / "operator.log")
        operator.settings["FINETUNE_OPERATOR_REPORT_URL"] = f"http://127.0.0.1:{operator.port}"
        stack.callback(operator.end, signal.SIGTERM)
        operator.start()
        show("waiting for the pods")
        engine_port = free_port()
        served = Served(api)
        cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(_deployment()))
        cluster.kubectl(
            "-n", namespace, "apply", "-f", "-", stdin=json.dumps(_adapter(versions[0], s3, engine_port, pods))
        )
        wait_for(lambda: _has_agent(reader), 60, "the agent in the pod template")
        cluster.kubectl("-n", namespace, "scale", "deployment", DEPLOYMENT, f"--replicas={pods}")
        started = _mount_pods(api, reader, s3, pods, directory)
        stack.enter_context(_running("bench.rollout.engines", [str(engine_port), *(pod.address for pod in started)]))
        kubelet = stack.enter_context(Kubelet(api, f"finetune-adapters-{DEPLOYMENT}", started))
        values = json.dumps([pod.agent_values(f"http://127.0.0.1:{operator.port}") for pod in started])
        stack.enter_context(_running("bench.rollout.agents", [], values))
        wait_for(lambda: versions[0].digest in served.at, START_SECONDS, "all pods serve the first version")
        rollouts = []
        for number, version in enumerate(versions[1:]):
            show(f"roll-out {number + 1} of {rounds}")
            time.sleep(PAUSE_SECONDS)
            rollouts.append(_roll_out(api, version, started, kubelet, served, operator))
    return rollouts


def _roll_out(
    api: Api, version: DesiredVersion, pods: list[Pod], kubelet: Kubelet, served: Served, operator: Operator
) -> Rollout:
    """Change the version, and wait until all pods serve it."""
    operator_cpu, agents_cpu = cpu_seconds(operator), _agents_cpu(pods)
    patch = {"spec": {"adapter": {"uri": version.uri, "digest": version.digest}}}
    changed = time.time()
    api.custom.patch_namespaced_custom_object(GROUP, VERSION, api.namespace, PLURAL, NAME, patch)
    wait_for(lambda: version.digest in served.at, ROLLOUT_SECONDS, "all pods serve the next version")
    operator_cpu, agents_cpu = cpu_seconds(operator) - operator_cpu, _agents_cpu(pods) - agents_cpu
    times = []
    for pod in pods:
        given = kubelet.given[version.digest, pod.name]
        with pod.log.open() as lines:
            times.append(read_times(lines, SERVED_NAME, version.digest, changed, given))
    return Rollout(served.at[version.digest] - changed, operator_cpu, agents_cpu / len(pods), times)


def _agents_cpu(pods: list[Pod]) -> float:
    """Return the CPU seconds that the agents of some pods have used."""
    return sum(process.cpu_seconds(int(pod.pid_file.read_text())) for pod in pods)


def _has_agent(reader: Reader) -> bool:
    template = reader.get("deployment", DEPLOYMENT)["spec"]["template"]["spec"]
    return any(container["name"] == "finetune-agent" for container in template.get("initContainers", []))


def _mount_pods(api: Api, reader: Reader, s3: S3Server, number: int, directory: Path) -> list[Pod]:
    """Wait for the pods of the Deployment, and write the files of each."""

    def find() -> list[Object] | None:
        found = reader.list("pods", f"{GROUP}/role=agent")
        return found if len(found) == number else None

    agent_port = free_port()
    pods = []
    for place, resource in enumerate(wait_for(find, 60, "the pods")):
        name = resource["metadata"]["name"]
        pod = Pod(name, address_of(place), agent_port, directory / name)
        pod.mount(s3, api.pod_token(resource))
        pods.append(pod)
    return pods


@contextmanager
def _running(module: str, arguments: list[str], text: str = "") -> Iterator[None]:
    """Run a module, and the processes that it starts, for the length of a ``with`` block."""
    started = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, start_new_session=True
    )
    assert started.stdin is not None
    try:
        started.stdin.write(text.encode())
        started.stdin.close()
        yield
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def _deployment() -> Object:
    """Return a Deployment without pods: its pods come when the agent is in its template."""
    engine = {
        "name": "vllm",
        "image": "vllm/vllm-openai:v0.33.0",
        "args": ["--model=/models/base", "--enable-lora", "--max-lora-rank=16"],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": DEPLOYMENT},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": DEPLOYMENT}},
            "template": {"metadata": {"labels": {"app": DEPLOYMENT}}, "spec": {"containers": [engine]}},
        },
    }


def _adapter(version: DesiredVersion, s3: S3Server, engine_port: int, pods: int) -> Object:
    """Return an AdapterDeployment whose pods may all move at once."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "AdapterDeployment",
        "metadata": {"name": NAME},
        "spec": {
            "adapter": {
                "uri": version.uri,
                "digest": version.digest,
                "s3": {"endpoint": s3.endpoint, "region": "us-east-1"},
                "secretRef": {"name": SECRET},
            },
            "servedName": SERVED_NAME,
            "target": {"deploymentRef": {"name": DEPLOYMENT}, "port": engine_port},
            "strategy": {"maxUnavailable": pods},
        },
    }
