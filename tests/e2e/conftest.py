"""Run the demo once for all of these tests on one cluster, and add a namespace with an S3 server for disturbed jobs."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from devcluster import demo as script
from devcluster import model
from devcluster.cluster import Cluster
from tests.e2e import users_cluster
from tests.e2e.engine import Engine, engine_of
from tests.e2e.jobs import ROWS, job, jsonl, succeeded
from tests.e2e.namespace import SYSTEM_NAMESPACE, Namespace, Object
from tests.e2e.objectstore import ObjectStore
from tests.e2e.record import Record, recording

DEMO_SECONDS = 2700
"""The demo with cold caches on a busy machine; with warm ones it takes a few minutes."""
WORKSHOP = "e2e"
UNDISTURBED = "undisturbed"


@dataclass(frozen=True)
class Demo:
    """A cluster after `make demo`, and a record of what happened while it ran."""

    cluster: Cluster
    namespace: Namespace
    output: str
    cluster_wide_before: frozenset[str]
    jobs: Record
    pods: Record
    deployments: Record

    @property
    def engine(self) -> Engine:
        """Return the inference Service."""
        return engine_of(self.namespace)

    @property
    def system(self) -> Namespace:
        """Return the namespace in which the operator runs."""
        return Namespace(self.cluster, SYSTEM_NAMESPACE)


@dataclass(frozen=True)
class Workshop:
    """A namespace with an S3 server that can be stopped, the tiny Llama and a dataset."""

    namespace: Namespace
    store: ObjectStore
    pods: Record
    system: Namespace


@pytest.fixture(scope="session")
def demo_cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Yield the user's own cluster where one is given, else the dev cluster's real node."""
    if not users_cluster.is_given():
        yield request.getfixturevalue("node_cluster")
        return
    try:
        yield users_cluster.load_cluster(tmp_path_factory.mktemp("own"))
    finally:
        subprocess.run([sys.executable, "-m", "devcluster.demo", "down"], check=True)


@pytest.fixture(scope="session")
def demo(demo_cluster: Cluster) -> Iterator[Demo]:
    """Run `python -m devcluster.demo up`, which must succeed."""
    namespace = Namespace(demo_cluster, script.NAMESPACE)
    # A lent cluster may have the release already.
    before = cluster_wide(demo_cluster) - cluster_wide(demo_cluster, "app.kubernetes.io/name=finetune-operator")
    with ExitStack() as stack:
        kinds = ("finetunejobs.finetune-operator.io", "pods", "deployments")
        jobs, pods, deployments = (stack.enter_context(recording(namespace, kind)) for kind in kinds)
        output = run_demo(namespace)
        yield Demo(demo_cluster, namespace, output, before, jobs, pods, deployments)


def run_demo(namespace: Namespace) -> str:
    """Run the demo as `make demo` does, and return its output."""
    command = [sys.executable, "-m", "devcluster.demo", "up", "--name", namespace.cluster.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        try:
            output, _ = running.communicate(timeout=DEMO_SECONDS)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGINT)
            output, _ = running.communicate(timeout=60)
            output = f"{output}\nnot within {DEMO_SECONDS} s"
    assert running.returncode == 0, f"{output}\n\n{namespace.diagnosis()}"
    return output


@pytest.fixture(scope="session")
def dev_node(demo: Demo) -> Cluster:
    """Return the demo's cluster for tests that kill processes on the node."""
    if users_cluster.is_given():
        pytest.skip("kills processes on the node, which is not done to a cluster of the user's own")
    return demo.cluster


@pytest.fixture(scope="session")
def workshop(demo: Demo, dev_node: Cluster) -> Iterator[Workshop]:
    """Yield the namespace `e2e` and delete it afterwards."""
    namespace = Namespace(demo.cluster, WORKSHOP)
    remove(namespace)
    namespace.cluster.kubectl("create", "namespace", WORKSHOP)
    store = ObjectStore(namespace, dev_node.state_dir / "e2e-buckets")
    store.remove()
    try:
        with recording(namespace, "pods") as pods:
            store.install(demo.namespace.get("deployment", "s3")["spec"]["template"]["spec"]["containers"][0]["image"])
            store.upload(model.tiny_llama(), "models/tiny-llama")
            store.put("data/rows.jsonl", jsonl(ROWS))
            # It trains while the first tests look at other things.
            namespace.apply(job(UNDISTURBED, store))
            yield Workshop(namespace, store, pods, demo.system)
    finally:
        remove(namespace)
        store.remove()


def remove(namespace: Namespace) -> None:
    """Delete a namespace; a trainer whose S3 service is gone uses up its grace period of 120 s."""
    namespace.cluster.kubectl("delete", "namespace", namespace.name, "--ignore-not-found", "--timeout=180s")


@pytest.fixture(scope="session")
def undisturbed(workshop: Workshop) -> Object:
    """Return a finished job of the tiny Llama that nothing disturbed."""
    return succeeded(workshop.namespace, UNDISTURBED)


def cluster_wide(cluster: Cluster, selector: str = "") -> frozenset[str]:
    """Return the names of all objects outside of namespaces that an installation could leave behind."""
    kinds = (
        "customresourcedefinitions,clusterroles,clusterrolebindings,priorityclasses,persistentvolumes,apiservices,"
        "mutatingwebhookconfigurations,validatingwebhookconfigurations,validatingadmissionpolicies"
    )
    return frozenset(cluster.kubectl("get", kinds, f"--selector={selector}", "--output=name").split())


def await_operator(system: Namespace) -> None:
    """Wait until the operator is ready."""
    system.kubectl("rollout", "status", "deployment/finetune-operator", "--timeout=120s")
