"""More than one replica, and more than one installation: one of them works, and another takes over."""

import json
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devcluster.cluster import Cluster
from finetune_api.messages import PROGRESS_PATH
from tools.testing.fake_kubelet import Kubelet
from tools.testing.kubernetes_api import Api
from tools.testing.operator_messages import PREFLIGHT_PASSED, PROGRESS, SUCCEEDED
from tools.testing.operator_process import Operator
from tools.testing.waiting import until

pytestmark = pytest.mark.cluster
TAKE_OVER_SECONDS = 15
HAND_OVER_SECONDS = 8
"""Well below the ten seconds after which a silent leader loses its Lease."""
RELEASE = "system/finetune-operator"


class Installation:
    """Replicas of one release, that watch one namespace."""

    def __init__(self, cluster: Cluster, namespace: str, directory: Path) -> None:
        """Begin without a replica."""
        self.cluster, self.namespace, self.directory = cluster, namespace, directory
        self.replicas: list[Operator] = []

    def add(self, name: str, release: str = RELEASE, *, wait: bool = True) -> Operator:
        """Start a replica."""
        settings = {
            "FINETUNE_OPERATOR_RELEASE": release,
            "FINETUNE_OPERATOR_POD_NAME": name,
            "FINETUNE_OPERATOR_POD_IP": "127.0.0.1",
        }
        replica = Operator(self.cluster.kubeconfig, self.namespace, self.directory / f"{name}.log", settings)
        self.replicas.append(replica)
        return replica.start(wait=wait)

    def lease(self) -> dict[str, Any]:
        """Return the Lease of the namespace."""
        text = self.cluster.kubectl("get", "lease", "finetune-operator", "-n", self.namespace, "--output=json")
        return dict(json.loads(text))

    def leader(self) -> str:
        """Return the holder of the Lease."""
        return str(self.lease()["spec"].get("holderIdentity", ""))


@pytest.fixture
def installation(cluster: Cluster, tmp_path: Path) -> Iterator[Installation]:
    """Yield an installation without replicas, with a namespace of its own."""
    installation = Installation(cluster, f"leaders-{uuid.uuid4().hex[:8]}", tmp_path)
    cluster.kubectl("create", "namespace", installation.namespace)
    try:
        yield installation
    finally:
        for replica in installation.replicas:
            replica.end()
        cluster.kubectl("delete", "namespace", installation.namespace, "--wait=false")


@pytest.mark.chaos("SIGSTOP of the replica that leads, and SIGCONT later")
def test_another_replica_takes_over_from_one_that_hangs_and_nothing_is_done_twice(installation: Installation) -> None:
    first = installation.add("first")
    until("the first leads", lambda: installation.leader() == "first")
    second = installation.add("second")
    api = Api(installation.cluster.kubeconfig, installation.namespace)
    holds_pods = True

    def script(job: str) -> tuple[int, dict[str, Any]] | None:
        if "preflight" in job:
            return 0, PREFLIGHT_PASSED
        return None if holds_pods else (0, SUCCEEDED)

    api.create_job("a")
    with Kubelet(api, "a", script):
        api.await_condition("a", "Running", "True")
        token = api.pod_token(api.run_pod("a-train-1"))
        passed_on = second.post(PROGRESS_PATH, {"progress": {**PROGRESS, "step": 3}}, token)
        assert passed_on == (200, {"accepted": True, "message": ""})
        until("the report in status", lambda: api.finetune_job("a")["status"].get("progress", {}).get("step") == 3)

        assert first.process is not None
        first.process.send_signal(signal.SIGSTOP)
        holds_pods = False
        began = time.monotonic()
        status = api.await_condition("a", "Ready", "True")
        assert time.monotonic() - began < TAKE_OVER_SECONDS
        assert installation.leader() == "second"
        first.process.send_signal(signal.SIGCONT)
        assert first.process.wait(timeout=30) == 1, first.log.read_text()
    assert "Another replica may work now" in first.log.read_text()
    assert [attempt["reason"] for attempt in status["attempts"]] == ["Succeeded"]
    assert api.job_names("a") == ["a-preflight", "a-train-1"]


@pytest.mark.chaos("SIGTERM of the replica that leads, and another installation")
def test_a_replica_that_ends_hands_over_at_once_and_another_installation_says_for_whom_it_waits(
    installation: Installation,
) -> None:
    first = installation.add("first")
    until("the first leads", lambda: installation.leader() == "first")
    other_installation = installation.add("other", release="team/mine", wait=False)
    until("the other has listed everything", lambda: "another installation" in other_installation.get("/readyz")[1])
    assert other_installation.get("/readyz") == (503, f"another installation, {RELEASE}, works in the same namespaces")
    assert f"another installation, {RELEASE}, works in the same namespaces" in other_installation.log.read_text()
    assert "watchNamespaces" in other_installation.log.read_text()

    began = time.monotonic()
    assert first.stop() == 0
    until("the other leads", lambda: installation.leader() == "other")
    assert time.monotonic() - began < HAND_OVER_SECONDS
    until("the other is ready", lambda: other_installation.get("/readyz")[0] == 200)


def test_an_operator_for_all_namespaces_leaves_out_those_of_a_namespaced_one(installation: Installation) -> None:
    namespaced = installation.add("namespaced", release="team/mine")
    until("the namespaced one leads", lambda: installation.leader() == "namespaced")
    home = f"{installation.namespace}-system"
    installation.cluster.kubectl("create", "namespace", home)
    everywhere = Installation(installation.cluster, "", installation.directory)
    installation.replicas += [everywhere.add("everywhere", release=f"{home}/finetune-operator")]
    try:
        until("it says so", lambda: "so this one leaves it out" in everywhere.replicas[0].log.read_text())
        api = Api(installation.cluster.kubeconfig, installation.namespace)
        namespaced.kill()
        api.create_job("a")
        elsewhere = Api(installation.cluster.kubeconfig, home)
        elsewhere.create_job("b")
        elsewhere.await_condition("b", "Accepted", "True")
        assert api.condition("a", "Accepted") is None
        api.await_condition("a", "Accepted", "True")  # the namespaced one is gone for good
    finally:
        installation.cluster.kubectl("delete", "namespace", home, "--wait=false")
