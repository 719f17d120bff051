"""A canary by shares of the requests, by the operator against a real API server and the gateway's own CRDs."""

from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from finetune_api.version_paths import version_name
from tests.adapterdeployment.groups import V1, V2
from tests.adapterdeployment.serving import ADP, ServingNamespace, manifest
from tests.adapterdeployment.test_release_on_the_server import run_finetune, status
from tools.testing.kubernetes_api import Object
from tools.testing.waiting import until

pytestmark = [pytest.mark.cluster]

GROUP = "inference.networking.x-k8s.io"
OLD, NEW = (version_name("bot-name", digest) for digest in (V1, V2))
POOL: Object = {
    "apiVersion": "inference.networking.k8s.io/v1",
    "kind": "InferencePool",
    "metadata": {"name": "pool"},
    "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "targetPorts": [{"number": 8000}],
        "endpointPickerRef": {"name": "picker", "port": {"number": 9002}},
    },
}


def allow(serving: ServingNamespace) -> None:
    """Let the administrator allow it."""
    serving.operator.settings["FINETUNE_OPERATOR_MODEL_REWRITES"] = "true"
    serving.operator.kill()
    serving.operator.start()


def apply(serving: ServingNamespace, digest: str) -> None:
    traffic = {"inferenceModelRewrite": {"poolRef": {"name": "pool"}, "group": GROUP}}
    canary = {"steps": [{"trafficPercent": 5}, {"trafficPercent": 50, "pauseSeconds": 0}], "traffic": traffic}
    serving.apply_adapter("bot", digest, strategy={"canary": canary})


def shares(serving: ServingNamespace) -> dict[str, int]:
    """Return what the gateway does with requests for the served name."""
    try:
        rewrite = serving.api.custom.get_namespaced_custom_object(
            GROUP, "v1alpha2", serving.namespace, "inferencemodelrewrites", "bot"
        )
    except ApiException as error:
        assert error.status == 404, error.body
        return {}
    (rule,) = rewrite["spec"]["rules"]
    assert rule["matches"] == [{"model": {"type": "Exact", "value": "bot-name"}}]
    return {target["modelRewrite"]: target["weight"] for target in rule["targets"]}


def load(serving: ServingNamespace, pods: list[Object]) -> None:
    """Let each agent load and prove what the ConfigMap asks of its pod."""
    for pod in pods:
        name = pod["metadata"]["name"]
        held = [entry for entry in serving.desired() if name in (entry.get("pods") or [name])]
        adapters: list[dict[str, Any]] = [
            {
                "deployment": "bot",
                "servedName": entry["servedName"],
                "digest": entry["version"]["digest"],
                "activeDigest": entry["version"]["digest"],
                "state": "Active",
            }
            for entry in held
        ]
        serving.report(pod, *adapters)


def await_shares(serving: ServingNamespace, pods: list[Object], expected: dict[str, int]) -> None:
    """Wait until the requests are divided so, while the agents follow."""

    def ask() -> bool:
        load(serving, pods)
        return shares(serving) == expected

    until(f"the shares {expected}", ask)


def start(serving: ServingNamespace) -> list[Object]:
    """Let all pods serve the first version."""
    allow(serving)
    serving.kubectl("apply", "-f", "-", stdin=POOL)
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    apply(serving, V1)
    pods = sorted(serving.pods(), key=lambda pod: str(pod["metadata"]["name"]))
    await_shares(serving, pods, {OLD: 100})
    serving.await_condition("bot", "Ready", "True", "Serving")
    return pods


@pytest.mark.usefixtures("gateway")
def test_requests_move_by_steps_and_an_operator_that_was_killed_goes_on(serving: ServingNamespace) -> None:
    pods = start(serving)
    apply(serving, V2)
    await_shares(serving, pods, {OLD: 95, NEW: 5})
    message = serving.await_condition("bot", "Suspended", "True", "CanaryPaused")
    assert "canary step 1 of 2 (5 % of the requests)" in message
    serving.operator.kill()
    serving.operator.start()
    load(serving, pods)
    assert "5 % of the requests" in serving.await_condition("bot", "Suspended", "True", "CanaryPaused")
    assert shares(serving) == {OLD: 95, NEW: 5}
    assert "step 1 of 2, 5 % of the requests" in run_finetune(serving, "status", "adp/bot")
    assert "goes on after step 1" in run_finetune(serving, "resume", "bot")
    await_shares(serving, pods, {NEW: 100})
    serving.await_condition("bot", "Ready", "True", "Serving")
    evidence = status(serving)["history"][0]["evidence"]
    assert "step 2 of 2: it answered 50 % of the requests for 0 s" in evidence
    assert [entry["servedName"] for entry in serving.desired()] == [NEW, OLD]
    serving.kubectl("delete", ADP, "bot")
    until("the rewrite goes with its owner", lambda: shares(serving) == {})


@pytest.mark.usefixtures("gateway")
def test_an_aborted_canary_gives_every_request_back(serving: ServingNamespace) -> None:
    pods = start(serving)
    apply(serving, V2)
    await_shares(serving, pods, {OLD: 95, NEW: 5})
    serving.await_condition("bot", "Suspended", "True", "CanaryPaused")
    assert "goes back" in run_finetune(serving, "abort", "bot")
    await_shares(serving, pods, {OLD: 100})
    serving.await_condition("bot", "Stalled", "True", "RolledBack")


@pytest.mark.usefixtures("gateway")
def test_a_pool_with_pods_of_another_workload_is_refused(serving: ServingNamespace) -> None:
    allow(serving)
    other = {"name": "other", "labels": {"app": "web"}}
    pod = {"containers": [{"name": "vllm", "image": "vllm"}], "nodeName": "nowhere"}
    serving.kubectl("apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "Pod", "metadata": other, "spec": pod})
    serving.kubectl("apply", "-f", "-", stdin=POOL)
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    apply(serving, V1)
    message = serving.await_condition("bot", "Accepted", "False", "GatewayNotReady")
    assert "does not have (other)" in message
    serving.kubectl("delete", "pod", "other", "--force")
    serving.await_condition("bot", "Accepted", "True", "Accepted")


def test_without_the_crd_no_pod_is_touched(serving: ServingNamespace) -> None:
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    apply(serving, V1)
    assert "chart value" in serving.await_condition("bot", "Accepted", "False", "TrafficNotAllowed")
    allow(serving)
    message = serving.await_condition("bot", "Accepted", "False", "GatewayNotReady")
    assert f"the cluster has no InferenceModelRewrite of group {GROUP}" in message
    assert serving.agent() is None
