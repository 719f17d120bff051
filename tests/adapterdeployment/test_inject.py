"""When the agent is put into a Deployment's pods: a pod is never restarted for it a second time."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.messages import DesiredState
from finetune_operator.kube.kinds import Object
from finetune_operator.reconcile.adapterdeployment.model import Injection, Observed
from finetune_operator.reconcile.adapterdeployment.plan import make_plan
from finetune_operator.reconcile.adapterdeployment.status import build_updates
from finetune_operator.settings import Settings
from tests.adapterdeployment.groups import NOW, SETTINGS, V1, adapter, config_map, deployment, group, injected, uri

NEWER = replace(SETTINGS, operator_image="operator:2", report_url="http://elsewhere:8080")


def using(secret: str | None, name: str = "bot", **fields: Any) -> Object:
    """Return an AdapterDeployment with a Secret."""
    source = {"uri": uri(V1), "digest": V1, **({"secretRef": {"name": secret}} if secret else {})}
    return adapter(name, adapter=source, **fields)


def plan_injection(observed: Observed, settings: Settings = SETTINGS) -> Injection:
    injection = make_plan(observed, NOW, settings).injection
    assert injection is not None
    return injection


def read_conditions(observed: Observed, settings: Settings = SETTINGS, index: int = 0) -> dict[str, tuple[str, str]]:
    conditions = build_updates(observed, make_plan(observed, NOW, settings), None, NOW)[index].status["conditions"]
    return {item["type"]: (item["reason"], item["message"]) for item in conditions}


def test_the_same_operator_applies_it_once() -> None:
    assert plan_injection(group(adapter())).due
    assert plan_injection(group(adapter(), workload=injected())) == Injection(
        plan_injection(group(adapter(), workload=injected())).body, due=False
    )


def test_an_upgraded_operator_leaves_the_pods_alone_and_says_how_to_get_the_newer_agent() -> None:
    observed = group(adapter(), workload=injected())
    assert not plan_injection(observed, NEWER).due
    reason, message = read_conditions(observed, NEWER)["Injected"]
    assert reason == "AgentInjected"
    assert "operator:1" in message
    assert "operator:2" in message
    assert "kubectl rollout restart deployment/web" in message


REPLACED = {
    "pods are being replaced": {"observedGeneration": 1, "replicas": 3, "updatedReplicas": 1},
    "there are no pods": {"observedGeneration": 1, "replicas": 0},
}


@pytest.mark.parametrize("status", REPLACED.values(), ids=REPLACED.keys())
def test_the_newer_agent_comes_when_pods_start_anyway(status: Object) -> None:
    injection = plan_injection(group(adapter(), workload={**injected(), "status": status}), NEWER)
    assert injection.due
    assert injection.body["spec"]["template"]["spec"]["initContainers"][0]["image"] == "operator:2"


KEPT = {
    "scaled up": {"observedGeneration": 1, "replicas": 5, "updatedReplicas": 5},
    "a status of an older spec": {"observedGeneration": 0, "replicas": 3, "updatedReplicas": 1},
}


@pytest.mark.parametrize("status", KEPT.values(), ids=KEPT.keys())
def test_nothing_else_brings_it(status: Object) -> None:
    assert not plan_injection(group(adapter(), workload={**injected(), "status": status}), NEWER).due


def remove_mount(live: Object) -> None:
    live["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = []


def remove_variable(live: Object) -> None:
    live["spec"]["template"]["spec"]["containers"][0]["env"] = []


def remove_agent(live: Object) -> None:
    live["spec"]["template"]["spec"]["initContainers"] = []
    live["metadata"]["managedFields"] = []


def remove_label(live: Object) -> None:
    live["spec"]["template"]["metadata"]["labels"] = {}


@pytest.mark.parametrize("damage", [remove_mount, remove_variable, remove_agent, remove_label])
def test_an_agent_that_cannot_work_is_repaired(damage: Any) -> None:
    live = injected()
    damage(live)
    assert plan_injection(group(adapter(), workload=live)).due


def test_one_more_secret_restarts_nothing_and_holds_up_only_its_own_adapter() -> None:
    second = using("other", "two", created="2026-01-01T00:00:01Z")
    observed = group(using("keys"), second, workload=injected("keys"))
    plan = make_plan(observed, NOW, SETTINGS)
    assert plan.injection is not None
    assert not plan.injection.due
    assert plan.state is not None
    assert [entry.deployment for entry in plan.state.adapters] == ["bot"]
    assert read_conditions(observed)["Ready"][0] == "RollingOut"
    reason, message = read_conditions(observed, index=1)["Stalled"]
    assert reason == "RestartRequired"
    assert "'other' is not mounted" in message
    assert "mounted are: keys" in message
    rolling = {**injected("keys"), "status": {"observedGeneration": 1, "replicas": 3, "updatedReplicas": 1}}
    restarted = make_plan(replace(observed, workload=rolling), NOW, SETTINGS)
    assert restarted.injection is not None
    assert restarted.injection.due
    assert restarted.state is not None
    assert [entry.secret for entry in restarted.state.adapters] == ["keys", "other"]


def test_two_that_are_created_together_share_one_restart() -> None:
    """The second comes before the Deployment's status speaks of the agent: it waits, and nothing is wrong yet."""
    uninjected = {**injected("keys"), "status": {"observedGeneration": 0, "replicas": 3, "updatedReplicas": 3}}
    observed = group(using("keys"), using("other", "two", created="2026-01-01T00:00:01Z"), workload=uninjected)
    assert "Stalled" not in read_conditions(observed, index=1)


def test_one_secret_less_restarts_nothing_and_is_reported() -> None:
    observed = group(using("keys"), workload=injected("keys", "other"))
    assert not plan_injection(observed).due
    assert "no adapter needs it: Secret other" in read_conditions(observed)["Injected"][1]


def test_an_api_key_that_is_not_mounted_is_not_used_yet() -> None:
    item = adapter(target={"deploymentRef": {"name": "web"}, "apiKeySecretRef": {"name": "new-key"}})
    before = config_map(DesiredState(api_key_secret="old-key"))
    observed = group(item, workload=injected("old-key"), config_map=before)
    plan = make_plan(observed, NOW, SETTINGS)
    assert plan.state is not None
    assert plan.state.api_key_secret == "old-key"
    assert "Not mounted yet: Secret new-key" in read_conditions(observed)["Injected"][1]


def test_a_paused_deployment_is_reported() -> None:
    paused = deployment()
    paused["spec"]["paused"] = True
    reason, message = read_conditions(group(adapter(), workload=paused, pods=()))["Ready"]
    assert reason == "TargetPaused"
    assert "kubectl rollout resume deployment/web" in message
