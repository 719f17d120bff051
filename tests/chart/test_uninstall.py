"""`helm uninstall` on a real node with a job and an agent: the operator's image cleans up, and nothing is left."""

import json
import time
from collections.abc import Callable, Iterator

import pytest
import yaml

from devcluster import images
from devcluster.cluster import Cluster
from devcluster.targets import build_image
from tests.chart.helm import CHART, HelmError, Object, engine, helm
from tests.chart.inventory import REPLACED, eventually_same, inventory
from tests.chart.test_permissions import ADAPTER, JOB

pytestmark = [pytest.mark.node, pytest.mark.timeout(1500)]
SYSTEM, TEAM = "chart-system", "chart-team"


@pytest.fixture
def cluster(node_cluster: Cluster) -> Iterator[Cluster]:
    """Yield a cluster with a real node, without our CRDs, and with two namespaces."""
    if "finetune-operator.io" in node_cluster.kubectl("get", "crds", "-o", "name"):
        pytest.skip("the cluster was lent with finetune-operator in it")
    for name in (SYSTEM, TEAM):
        node_cluster.kubectl("create", "namespace", name)
    yield node_cluster
    helm("uninstall", "finetune-operator", "-n", SYSTEM, "--ignore-not-found", "--no-hooks", cluster=node_cluster)
    node_cluster.kubectl("delete", "namespace", SYSTEM, TEAM)


@pytest.fixture
def image(cluster: Cluster) -> str:
    """Return the operator's image, in the node's registry, by digest."""
    assert cluster.registry
    return images.push(build_image("finetune-operator", images.base_image()), cluster.registry)


def install(cluster: Cluster, image: str, *options: str) -> None:
    repository, digest = image.split("@")
    values = {
        "image.repository": repository,
        "image.digest": digest,
        "trainerImage.repository": repository,
        "trainerImage.digest": digest,
    }
    chosen = [f"--set={name}={value}" for name, value in values.items()]
    helm(
        "install",
        "finetune-operator",
        str(CHART),
        "-n",
        SYSTEM,
        "--wait",
        "--timeout=5m",
        *chosen,
        *options,
        cluster=cluster,
    )


def within(seconds: float, what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def test_an_uninstall_leaves_the_cluster_as_the_install_found_it(cluster: Cluster, image: str) -> None:
    def template() -> Object:
        vllm = json.loads(cluster.kubectl("-n", TEAM, "get", "deployment", "vllm", "-o", "json"))
        return dict(vllm["spec"]["template"])

    def create(*items: Object) -> None:
        cluster.kubectl("-n", TEAM, "create", "-f", "-", stdin=yaml.safe_dump_all(items))

    container = {"name": "vllm", "image": image, "command": ["sh", "-c", "sleep infinity"], "args": ["--enable-lora"]}
    create(engine(terminationGracePeriodSeconds=0, containers=[container]))
    cluster.kubectl("-n", TEAM, "rollout", "status", "deployment/vllm", "--timeout=300s")
    before, untouched = inventory(cluster), template()
    install(cluster, image, "--set=crds.keep=false")
    create(JOB, ADAPTER)
    within(60, "the agent is not there", lambda: "initContainers" in template()["spec"])
    within(
        60,
        "there is no preflight",
        lambda: "shakespeare-preflight" in cluster.kubectl("-n", TEAM, "get", "jobs", "-o", "name"),
    )
    helm("uninstall", "finetune-operator", "-n", SYSTEM, "--wait", "--timeout=5m", cluster=cluster)
    assert template() == untouched
    eventually_same(cluster, before, REPLACED)


def test_an_uninstall_that_cannot_clean_up_says_why_and_deletes_nothing(cluster: Cluster, image: str) -> None:
    cluster.kubectl("-n", TEAM, "create", "configmap", "finetune-adapters-vllm")
    cluster.kubectl(
        "-n", TEAM, "label", "configmap", "finetune-adapters-vllm", "finetune-operator.io/role=desired-state"
    )
    before = inventory(cluster)
    install(cluster, image, "--set=crds.keep=false", "--set=uninstall.timeoutSeconds=10")
    cluster.kubectl("-n", SYSTEM, "scale", "deployment/finetune-operator", "--replicas=0")
    during = inventory(cluster)
    with pytest.raises(HelmError, match=f"ConfigMap {TEAM}/finetune-adapters-vllm"):
        helm("uninstall", "finetune-operator", "-n", SYSTEM, "--timeout=3m", cluster=cluster)
    eventually_same(cluster, during, REPLACED)
    helm("uninstall", "finetune-operator", "-n", SYSTEM, "--no-hooks", cluster=cluster)
    eventually_same(cluster, before, REPLACED)
