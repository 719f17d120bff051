"""Run Kubeflow Trainer and JobSet, the nearest peer, on the same control plane, as their manifests run them.

Their webhooks are registered too: the API server calls them on loopback in place of a Service.
"""

import base64
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from bench.operator.contender import Contender, has_condition
from devcluster import binaries, pki
from devcluster.cluster import Cluster
from tools.testing.crds import apply_crds
from tools.testing.kubernetes_api import Api, Object
from tools.testing.process import running as running_program
from tools.testing.waiting import free_port, wait_for

KIND = ("trainer.kubeflow.org", "v1alpha1", "trainjobs")
RUNTIME = "torch-distributed"
START_SECONDS = 120.0
POD_WEBHOOKS = {"mpod.kb.io", "vpod.kb.io"}
JOBSET_PODS = {"matchExpressions": [{"key": "jobset.sigs.k8s.io/jobset-name", "operator": "Exists"}]}
"""What config/components/webhook/patches of JobSet selects for these."""
UNUSED = {"bindAddress": "0"}


@contextmanager
def running(cluster: Cluster, api: Api, directory: Path) -> Iterator[Contender]:
    """Run both managers during a ``with`` block, and yield them as one contender."""
    trainer = binaries.download_module(binaries.KUBEFLOW_TRAINER)
    jobset = binaries.download_module(binaries.JOBSET)
    crds = [trainer / "manifests" / "base" / "crds", jobset / "config" / "components" / "crd" / "bases"]
    files = [file for crd in crds for file in sorted(crd.glob("*_*.yaml"))]
    apply_crds(cluster, files)
    pki.ensure(directory / "pki", ["127.0.0.1"])
    webhooks = {
        "jobset": jobset / "config" / "components" / "webhook" / "manifests.yaml",
        "trainer-controller-manager": trainer / "manifests" / "base" / "webhook" / "manifests.yaml",
    }
    with ExitStack() as stack:
        pids = []
        for name, manifest in webhooks.items():
            port = free_port()
            process = stack.enter_context(_running(name, port, cluster, directory))
            pids.append(process.pid)
            stack.enter_context(_registered(cluster, name, _read_webhooks(manifest, port, directory)))
        runtime = trainer / "manifests" / "base" / "runtimes" / "torch_distributed.yaml"
        wait_for(lambda: _applies(cluster, runtime), START_SECONDS, "the webhooks")
        yield Contender(
            kind=KIND,
            create=lambda name: _create(api, name),
            is_done=lambda resource: has_condition(resource, "Complete"),
            find_resource=lambda job: job.removesuffix("-node-0"),
            agents=("trainer-controller-manager", "jobset"),
            pids=pids,
        )


def _create(api: Api, name: str) -> None:
    body = {
        "apiVersion": "/".join(KIND[:2]),
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {"runtimeRef": {"name": RUNTIME}, "trainer": {"numNodes": 1, "image": "trainer:1"}},
    }
    api.custom.create_namespaced_custom_object(*KIND[:2], api.namespace, KIND[2], body)


def _applies(cluster: Cluster, file: Path) -> bool:
    ran = subprocess.run(
        [str(binaries.program("kubectl")), f"--kubeconfig={cluster.kubeconfig}", "apply", "-f", str(file)],
        capture_output=True,
        check=False,
    )
    return ran.returncode == 0


@contextmanager
def _running(name: str, port: int, cluster: Cluster, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a manager with the configuration of its manifests, but no leader election, and certificates of ours."""
    scratch = directory / name
    certificates = scratch / "k8s-webhook-server" / "serving-certs"  # where controller-runtime looks
    certificates.mkdir(parents=True)
    for ours, theirs in (("crt", "tls.crt"), ("key", "tls.key")):
        (certificates / theirs).write_bytes((directory / "pki" / f"apiserver.{ours}").read_bytes())
    configuration = scratch / "configuration.json"
    configuration.write_text(json.dumps(_configure(name, port)))
    command = [str(binaries.program(name)), f"--config={configuration}", "--zap-log-level=2"]
    environment = {"KUBECONFIG": str(cluster.kubeconfig), "TMPDIR": str(scratch)}
    with running_program(command, scratch / "log", environment) as process:
        yield process


def _configure(name: str, port: int) -> Object:
    """Return the configuration in a manager's own manifests, with other ports."""
    common: Object = {"kind": "Configuration", "leaderElection": {"leaderElect": False}, "metrics": UNUSED}
    webhook: Object = {"port": port, "host": "127.0.0.1"}
    health: Object = {"healthProbeBindAddress": f"127.0.0.1:{free_port()}"}
    if name == "jobset":
        return {
            **common,
            "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
            "internalCertManagement": {"enable": False},
            "webhook": webhook,
            "health": health,
        }
    concurrency = {"TrainJob": 5, "TrainingRuntime": 1, "ClusterTrainingRuntime": 1}
    return {
        **common,
        "apiVersion": "config.trainer.kubeflow.org/v1alpha1",
        "controller": {
            "groupKindConcurrency": {f"{kind}.trainer.kubeflow.org": number for kind, number in concurrency.items()}
        },
        "certManagement": {"enable": False},
        "clientConnection": {"qps": 50, "burst": 100},
        "webhook": webhook,
        "health": health,
    }


def _read_webhooks(manifest: Path, port: int, directory: Path) -> list[Object]:
    """Read the webhooks of a manifest, to be called on a port of loopback."""
    authority = base64.b64encode((directory / "pki" / "ca.crt").read_bytes()).decode()
    documents: list[Object] = list(yaml.safe_load_all(manifest.read_text()))
    for document in documents:
        for webhook in document["webhooks"]:
            path = webhook["clientConfig"]["service"]["path"]
            webhook["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}", "caBundle": authority}
            if webhook["name"] in POD_WEBHOOKS:
                webhook["objectSelector"] = JOBSET_PODS
    return documents


@contextmanager
def _registered(cluster: Cluster, name: str, documents: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Register webhooks during a ``with`` block."""
    named = [{**document, "metadata": {"name": f"{name}-{document['kind'].lower()}"}} for document in documents]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": named})
    cluster.kubectl("apply", "-f", "-", stdin=text)
    try:
        yield
    finally:
        cluster.kubectl("delete", "-f", "-", stdin=text)
