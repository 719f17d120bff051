"""The rights that the chart gives are enough for the operator, and are no more: the real operator runs with them."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from devcluster.cluster import Cluster
from devcluster.errors import DevClusterError
from finetune_api.messages import PROGRESS_PATH, REPORT_AUDIENCE
from tests.chart.helm import NAMESPACE, Object, of_kind, operator_environment, render

pytestmark = pytest.mark.cluster
TEAM = "team-a"
JOB: Object = {
    "apiVersion": "finetune-operator.io/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "shakespeare"},
    "spec": {
        "model": {"uri": "hf://a/b"},
        "dataset": {"uri": "s3://a/b"},
        "output": {"s3": {"bucket": "abc"}, "deletionPolicy": "Delete"},
    },
}
ENGINE: Object = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "vllm"},
    "spec": {
        "selector": {"matchLabels": {"app": "vllm"}},
        "template": {
            "metadata": {"labels": {"app": "vllm"}},
            "spec": {"containers": [{"name": "vllm", "image": "vllm", "args": ["--enable-lora"]}]},
        },
    },
}
ADAPTER: Object = {
    "apiVersion": "finetune-operator.io/v1alpha1",
    "kind": "AdapterDeployment",
    "metadata": {"name": "shakespeare"},
    "spec": {
        "adapter": {"uri": "s3://adapters/a", "digest": "sha256:" + "0" * 64},
        "servedName": "shakespeare",
        "target": {"deploymentRef": {"name": "vllm"}},
    },
}
STATEFUL: Object = {**ENGINE, "kind": "StatefulSet", "spec": {**ENGINE["spec"], "serviceName": "vllm"}}
STATEFUL_ADAPTER: Object = {
    **ADAPTER,
    "metadata": {"name": "stateful"},
    "spec": {**ADAPTER["spec"], "target": {"statefulSetRef": {"name": "vllm"}}},
}


@pytest.fixture(scope="module", params=["", f"{{{TEAM}}}"], ids=["all namespaces", "chosen namespaces"])
def account(
    request: pytest.FixtureRequest, empty_cluster: Cluster, namespace: str
) -> Iterator[tuple[Cluster, dict[str, str]]]:
    """Yield a cluster with the chart's CRDs, account and roles, and the operator's environment by the chart."""
    objects = render({"watchNamespaces": request.param} if request.param else {})
    kinds = (
        "CustomResourceDefinition", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding",
        "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
    )  # fmt: skip
    text = yaml.safe_dump_all(of_kind(objects, *kinds))
    empty_cluster.kubectl("create", "namespace", TEAM)
    empty_cluster.kubectl("apply", "--server-side", "-f", "-", stdin=text)
    yield empty_cluster, operator_environment(objects)
    empty_cluster.kubectl("delete", "-f", "-", stdin=text)
    empty_cluster.kubectl("delete", "namespace", TEAM)


@pytest.fixture
def kubeconfig(account: tuple[Cluster, dict[str, str]], tmp_path: Path) -> Path:
    """Return the operator's own way to the API server: the token of its ServiceAccount."""
    cluster, _ = account
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {
        "token": cluster.kubectl("-n", NAMESPACE, "create", "token", "finetune-operator").strip()
    }
    path = tmp_path / "kubeconfig"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def log(account: tuple[Cluster, dict[str, str]], kubeconfig: Path, tmp_path: Path) -> Iterator[Path]:
    """Yield the log of an operator that runs with the chart's environment and rights."""
    _, environment = account
    path = tmp_path / "operator.log"
    own_objects = {
        "FINETUNE_OPERATOR_KUBECONFIG": str(kubeconfig),
        "FINETUNE_OPERATOR_LISTEN_PORT": "0",
        "FINETUNE_OPERATOR_LISTEN_HOST": "127.0.0.1",
    }
    with path.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune_operator"],
            env={**os.environ, **environment, **own_objects},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield path
        finally:
            process.terminate()
            process.wait(30)


def eventually(condition: Callable[[], bool], log: Path) -> None:
    """Wait until it holds; a failure shows the operator's log."""
    for _ in range(150):
        with contextlib.suppress(DevClusterError):
            if condition():
                return
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def test_the_operator_needs_no_more_than_the_chart_gives(account: tuple[Cluster, dict[str, str]], log: Path) -> None:
    cluster, _ = account

    def names(kind: str) -> list[str]:
        return cluster.kubectl("-n", TEAM, "get", kind, "-o", "jsonpath={.items[*].metadata.name}").split()

    def reason(kind: str) -> str:
        path = "jsonpath={.status.conditions[?(@.type=='Ready')].reason}"
        return cluster.kubectl("-n", TEAM, "get", kind, "shakespeare", "-o", path)

    def agents(kind: str) -> str:
        path = "jsonpath={.spec.template.spec.initContainers[*].name}"
        return cluster.kubectl("-n", TEAM, "get", kind, "vllm", "-o", path)

    cluster.kubectl("-n", TEAM, "create", "-f", "-", stdin=yaml.safe_dump_all([JOB, ENGINE, ADAPTER]))
    cluster.kubectl("-n", TEAM, "create", "-f", "-", stdin=yaml.safe_dump_all([STATEFUL, STATEFUL_ADAPTER]))
    eventually(lambda: "shakespeare-preflight" in names("jobs"), log)
    eventually(lambda: reason("finetunejob") not in ("", "Pending"), log)
    maps = {"finetune-adapters-vllm", "finetune-adapters.statefulset.vllm"}
    eventually(lambda: maps <= set(names("configmaps")), log)
    eventually(lambda: agents("deployment") == agents("statefulset") == "finetune-agent", log)
    eventually(lambda: reason("adapterdeployment") not in ("", "Pending"), log)
    cluster.kubectl("-n", TEAM, "delete", "finetunejob", "shakespeare", "--wait=false")
    eventually(lambda: "shakespeare-clean-up" in names("jobs"), log)
    retain = '{"spec": {"output": {"deletionPolicy": "Retain"}}}'
    cluster.kubectl("-n", TEAM, "patch", "finetunejob", "shakespeare", "--type=merge", "--patch", retain)
    eventually(lambda: names("finetunejobs") == [], log)
    cluster.kubectl("-n", TEAM, "delete", "adapterdeployment", "shakespeare", "stateful")
    eventually(lambda: not maps & set(names("configmaps")), log)
    assert "forbidden" not in log.read_text().lower()


def test_the_operator_learns_from_a_token_who_reports(account: tuple[Cluster, dict[str, str]], log: Path) -> None:
    cluster, _ = account
    token = cluster.kubectl("-n", TEAM, "create", "token", "default", "--audience", REPORT_AUDIENCE).strip()
    eventually(lambda: "Listening on port" in log.read_text(), log)
    (port,) = re.findall(r"Listening on port (\d+)", log.read_text())
    headers = {"Authorization": f"Bearer {token}"}
    answers: list[httpx.Response] = []

    def is_answered() -> bool:
        answers.append(httpx.post(f"http://127.0.0.1:{port}{PROGRESS_PATH}", json={}, headers=headers, trust_env=False))
        return answers[-1].status_code != 503

    eventually(is_answered, log)
    assert answers[-1].status_code == 401
    assert "not bound to a pod" in answers[-1].json()["message"], "the token itself is valid"
    assert "forbidden" not in log.read_text().lower()


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("get", "secrets"),
        ("list", "secrets"),
        ("create", "pods"),
        ("delete", "pods"),
        ("create", "pods/exec"),
        ("create", "deployments.apps"),
        ("delete", "deployments.apps"),
        ("update", "deployments.apps"),
        ("create", "statefulsets.apps"),
        ("delete", "statefulsets.apps"),
        ("update", "statefulsets.apps"),
        ("patch", "daemonsets.apps"),
        ("delete", "adapterdeployments.finetune-operator.io"),
        ("update", "finetunejobs.finetune-operator.io"),
        ("create", "serviceaccounts/token"),
        ("patch", "clusterroles.rbac.authorization.k8s.io"),
    ],
)
def test_what_the_operator_may_not_do(account: tuple[Cluster, dict[str, str]], verb: str, resource: str) -> None:
    cluster, _ = account
    assert not allowed(cluster, verb, resource, TEAM)


def test_with_chosen_namespaces_the_others_are_closed(account: tuple[Cluster, dict[str, str]]) -> None:
    cluster, environment = account
    everywhere = "FINETUNE_OPERATOR_NAMESPACES" not in environment
    assert allowed(cluster, "list", "jobs.batch", TEAM)
    assert allowed(cluster, "list", "jobs.batch", "default") is everywhere


def allowed(cluster: Cluster, verb: str, resource: str, namespace: str) -> bool:
    """Tell whether the operator's account may do so."""
    who = f"--as=system:serviceaccount:{NAMESPACE}:finetune-operator"
    try:
        return cluster.kubectl("auth", "can-i", verb, resource, "-n", namespace, who).strip() == "yes"
    except DevClusterError as error:
        assert "failed: " in str(error)  # kubectl ends with 1 for "no"
        return False
