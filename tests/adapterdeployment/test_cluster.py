"""The operator against a real API server: what it puts into a Deployment and takes out."""

import copy
import json

import pytest

from finetune_api.timestamps import current_timestamp
from tests.adapterdeployment.groups import V1, V2, uri
from tests.adapterdeployment.serving import ADP, GROUP, ServingNamespace, manifest, says
from tools.testing.kubernetes_api import Object
from tools.testing.waiting import until

pytestmark = [pytest.mark.cluster]


def own(deployment: Object) -> Object:
    """Return the user's part of a Deployment: all but what the API server and its controllers write."""
    owned = copy.deepcopy(deployment)
    owned.pop("status", None)
    for name in ("generation", "resourceVersion", "managedFields"):
        owned["metadata"].pop(name, None)
    owned["metadata"].get("annotations", {}).pop("deployment.kubernetes.io/revision", None)
    return owned


@pytest.mark.parametrize("server_side", [False, True], ids=["kubectl apply", "kubectl apply --server-side"])
def test_what_is_put_in_is_taken_out_to_the_byte(serving: ServingNamespace, server_side: bool) -> None:
    serving.kubectl("apply", *(["--server-side"] if server_side else []), "-f", "-", stdin=manifest())
    until(
        "the first revision",
        lambda: serving.deployment()["metadata"].get("annotations", {}).get("deployment.kubernetes.io/revision"),
    )
    before = own(serving.deployment())
    serving.apply_adapter("bot")
    serving.await_condition("bot", "Injected", "True", "AgentInjected")
    spec = serving.deployment()["spec"]["template"]["spec"]
    agent = serving.agent()
    assert agent is not None
    assert agent["restartPolicy"] == "Always"
    assert agent["image"] == "operator:1"
    assert [container["name"] for container in spec["containers"]] == ["vllm", "logger"]
    engine = spec["containers"][0]
    assert {"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "1"} in engine["env"]
    assert {"name": "finetune-adapters", "mountPath": "/adapters", "readOnly": True} in engine["volumeMounts"]
    assert serving.desired()[0]["servedName"] == "bot-name"
    serving.kubectl("delete", ADP, "bot")
    until("the agent is out", lambda: serving.agent() is None)
    assert own(serving.deployment()) == before
    assert not [
        entry for entry in serving.deployment()["metadata"]["managedFields"] if entry["manager"] == "finetune-operator"
    ]
    until(
        "the ConfigMap is gone",
        lambda: "finetune-adapters-web" not in serving.kubectl("get", "configmap", "-o", "name"),
    )


def test_a_second_pass_writes_nothing(serving: ServingNamespace) -> None:
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    serving.apply_adapter("bot")
    serving.await_condition("bot", "Ready", "Unknown", "RollingOut")
    for pod in serving.pods():
        serving.report(pod, says("bot", V1, V1))
    serving.await_condition("bot", "Ready", "True", "Serving")
    kinds = [(ADP, "bot"), ("deployment", "web"), ("configmap", "finetune-adapters-web")]
    before = [serving.get(*kind)["metadata"]["resourceVersion"] for kind in kinds]
    serving.operator.kill()
    serving.operator.start()
    until("a pass", lambda: serving.operator.metric("finetune_operator_reconciles_total", kind="ServingGroup") >= 1)
    for pod in serving.pods():
        serving.report(pod, says("bot", V1, V1))
    assert [serving.get(*kind)["metadata"]["resourceVersion"] for kind in kinds] == before


def test_replicas_and_the_users_later_changes_stay_the_users(serving: ServingNamespace) -> None:
    serving.kubectl("apply", "-f", "-", stdin=manifest(replicas=2))
    serving.apply_adapter("bot")
    serving.await_condition("bot", "Injected", "True", "AgentInjected")
    serving.kubectl("scale", "deployment", "web", "--replicas=5")  # as an HPA does
    changed = manifest(replicas=5)
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = "vllm/vllm-openai:v0.33.0"
    serving.kubectl("apply", "-f", "-", stdin=changed)
    serving.apply_adapter("bot", V2)
    until("the new version is told", lambda: serving.desired()[0]["version"]["digest"] == V2)
    spec = serving.deployment()["spec"]
    assert spec["replicas"] == 5
    assert spec["template"]["spec"]["containers"][0]["image"] == "vllm/vllm-openai:v0.33.0"
    assert serving.agent() is not None
    serving.kubectl("delete", ADP, "bot")
    until("the agent is out", lambda: serving.agent() is None)
    assert serving.deployment()["spec"]["replicas"] == 5


def test_a_new_version_changes_nothing_in_the_pods_template(serving: ServingNamespace) -> None:
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    serving.apply_adapter("bot")
    serving.await_condition("bot", "Injected", "True", "AgentInjected")
    before = serving.deployment()["metadata"]["generation"]
    serving.apply_adapter("bot", V2)
    until("the new version is told", lambda: serving.desired()[0]["version"]["digest"] == V2)
    assert serving.deployment()["metadata"]["generation"] == before


@pytest.mark.parametrize("value", ["1", "True"])
def test_a_variable_that_the_user_has_set_stays_the_users(serving: ServingNamespace, value: str) -> None:
    env = [{"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": value}, {"name": "OTHER", "value": "x"}]
    serving.kubectl("apply", "-f", "-", stdin=manifest(env=env))
    serving.apply_adapter("bot")
    serving.await_condition("bot", "Injected", "True", "AgentInjected")
    assert serving.deployment()["spec"]["template"]["spec"]["containers"][0]["env"] == env
    serving.kubectl("delete", ADP, "bot")
    until("the agent is out", lambda: serving.agent() is None)
    assert serving.deployment()["spec"]["template"]["spec"]["containers"][0]["env"] == env


def test_a_variable_that_forbids_it_is_a_conflict_that_names_its_owner(serving: ServingNamespace) -> None:
    env = [{"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "0"}]
    serving.kubectl("apply", "-f", "-", stdin=manifest(env=env))
    serving.apply_adapter("bot")
    message = serving.await_condition("bot", "Ready", "False", "FieldConflict")
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in message
    assert "kubectl-client-side-apply" in message
    assert serving.conditions("bot")["Stalled"][0] == "True"
    assert serving.agent() is None
    env[0]["value"] = "1"
    serving.kubectl("apply", "-f", "-", stdin=manifest(env=env))
    serving.await_condition("bot", "Injected", "True", "AgentInjected")


def test_two_share_one_agent_and_the_second_to_go_takes_it_along(serving: ServingNamespace) -> None:
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    serving.apply_adapter("one")
    serving.apply_adapter("two", V2)
    until("both are told", lambda: [entry["servedName"] for entry in serving.desired()] == ["one-name", "two-name"])
    generation = serving.deployment()["metadata"]["generation"]
    serving.kubectl("delete", ADP, "one")
    until("one is told", lambda: [entry["servedName"] for entry in serving.desired()] == ["two-name"])
    assert serving.deployment()["metadata"]["generation"] == generation  # no restart: its volumes stay needed
    serving.kubectl("delete", ADP, "two")
    until("the agent is out", lambda: serving.agent() is None)


def test_after_the_agent_is_in_only_a_rollout_of_the_users_changes_the_pods(serving: ServingNamespace) -> None:
    """A newer operator and the Secret of one more adapter wait for it; a deletion changes nothing either."""
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    serving.apply_adapter("one")
    serving.await_condition("one", "Injected", "True", "AgentInjected")
    generation = serving.await_rollout()
    serving.operator.kill()
    serving.operator.settings["FINETUNE_OPERATOR_OPERATOR_IMAGE"] = "operator:2"
    serving.operator.start()
    source = {"uri": uri(V2), "digest": V2, "secretRef": {"name": "other"}}
    serving.apply_adapter("two", adapter=source)
    assert "'other' is not mounted" in serving.await_condition("two", "Stalled", "True", "RestartRequired")
    until("it is said", lambda: "operator:2" in serving.conditions("one")["Injected"][2])
    assert [entry["servedName"] for entry in serving.desired()] == ["one-name"]
    assert serving.deployment()["metadata"]["generation"] == generation

    serving.kubectl("rollout", "restart", "deployment/web")
    until("the newer agent", lambda: (serving.agent() or {}).get("image") == "operator:2")
    until("both are told", lambda: len(serving.desired()) == 2)
    mounts = {mount["mountPath"] for mount in (serving.agent() or {})["volumeMounts"]}
    assert {"/etc/finetune/secrets/keys", "/etc/finetune/secrets/other"} <= mounts
    generation = serving.await_rollout()
    serving.kubectl("delete", ADP, "two")
    until("it is said", lambda: "Still mounted" in serving.conditions("one")["Injected"][2])
    assert serving.deployment()["metadata"]["generation"] == generation


def test_an_agent_that_kubectl_rollout_undo_brought_back_is_adopted_and_taken_out(serving: ServingNamespace) -> None:
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    serving.apply_adapter("one")
    serving.await_condition("one", "Injected", "True", "AgentInjected")
    serving.kubectl("delete", ADP, "one")
    until("the agent is out", lambda: serving.agent() is None)
    before = own(serving.deployment())
    serving.operator.kill()
    until("its revisions", lambda: "3" in serving.deployment()["metadata"]["annotations"].values())
    serving.kubectl("rollout", "undo", "deployment/web")
    assert serving.agent() is not None
    serving.operator.settings["FINETUNE_OPERATOR_OPERATOR_IMAGE"] = "operator:2"
    serving.operator.start()
    serving.apply_adapter("two")
    serving.await_condition("two", "Injected", "True", "AgentInjected")
    assert (serving.agent() or {})["image"] == "operator:2"
    serving.kubectl("delete", ADP, "two")
    until("the agent is out", lambda: serving.agent() is None)
    until("nothing is ours", lambda: "finetune" not in json.dumps(own(serving.deployment())))
    assert own(serving.deployment()) == before


def test_somebody_elses_configmap_is_neither_taken_nor_deleted_and_ours_stays_as_it_is(
    serving: ServingNamespace,
) -> None:
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    serving.kubectl("create", "configmap", "finetune-adapters-web", "--from-literal=desired.json={}")
    serving.apply_adapter("bot")
    assert "'finetune-adapters-web'" in serving.await_condition("bot", "Stalled", "True", "ConfigMapTaken")
    assert serving.agent() is None
    serving.kubectl("delete", ADP, "bot")
    serving.apply_adapter("bot")
    serving.await_condition("bot", "Stalled", "True", "ConfigMapTaken")
    assert serving.get("configmap", "finetune-adapters-web")["data"] == {"desired.json": "{}"}
    serving.kubectl("delete", "configmap", "finetune-adapters-web")
    serving.await_condition("bot", "Injected", "True", "AgentInjected")
    serving.kubectl("patch", "configmap", "finetune-adapters-web", "-p", '{"data": {"desired.json": "{}", "x": "y"}}')
    until(
        "what was edited by hand is undone",
        lambda: "bot-name" in str(serving.get("configmap", "finetune-adapters-web")),
    )
    serving.kubectl("label", "configmap", "finetune-adapters-web", f"{GROUP}/role-", "app.kubernetes.io/managed-by-")
    serving.apply_adapter("bot", V2)
    until("the next version is told", lambda: serving.desired()[0]["version"]["digest"] == V2)


def test_a_controller_that_writes_whole_deployments_is_named_and_not_fought(serving: ServingNamespace) -> None:
    serving.kubectl("create", "-f", "-", stdin=manifest())
    serving.apply_adapter("bot")
    for _ in range(3):
        until("the agent is in", lambda: serving.agent() is not None)
        serving.kubectl("replace", "-f", "-", stdin=manifest())
    message = serving.await_condition("bot", "Stalled", "True", "InjectionContested")
    assert "kubectl-create" in message or "kubectl-replace" in message
    generation = serving.deployment()["metadata"]["generation"]
    serving.apply_adapter("bot", V2)
    until("a pass", lambda: serving.get(ADP, "bot")["status"]["observedGeneration"] == 2)
    assert serving.deployment()["metadata"]["generation"] == generation
    serving.kubectl("delete", ADP, "bot")
    until("the ConfigMap is gone", lambda: not serving.desired())


def test_a_deletion_while_the_operator_is_down_is_caught_up(serving: ServingNamespace) -> None:
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    before = own(serving.deployment())
    serving.apply_adapter("bot")
    serving.await_condition("bot", "Injected", "True", "AgentInjected")
    serving.operator.kill()
    serving.kubectl("delete", ADP, "bot", "--timeout=10s")  # nothing of ours holds the deletion up
    serving.operator.start()
    until("the agent is out", lambda: serving.agent() is None)
    after = own(serving.deployment())
    after["metadata"].pop("annotations", None), before["metadata"].pop("annotations", None)
    assert after == before


def test_a_deployment_that_is_deleted_is_not_created_again(serving: ServingNamespace) -> None:
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    serving.apply_adapter("bot")
    serving.await_condition("bot", "Injected", "True", "AgentInjected")
    serving.kubectl("delete", "deployment", "web")
    serving.await_condition("bot", "Ready", "Unknown", "TargetNotFound")
    assert serving.kubectl("get", "deployment", "-o", "name") == ""
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    until("the agent is in again", lambda: serving.agent() is not None)


def test_pods_move_in_turn_by_what_their_agents_say(serving: ServingNamespace) -> None:
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    serving.apply_adapter("bot")
    pods = sorted(serving.pods(), key=lambda pod: str(pod["metadata"]["name"]))
    for pod in pods:
        serving.report(pod, says("bot", V1, V1))
    serving.await_condition("bot", "Ready", "True", "Serving")
    assert serving.get(ADP, "bot")["status"]["active"]["digest"] == V1

    serving.apply_adapter("bot", V2)
    first, second = (str(pod["metadata"]["name"]) for pod in pods)
    until("the first pod moves", lambda: serving.desired()[0].get("pods") == [first])
    assert serving.desired()[0]["previous"]["digest"] == V1
    annotated = serving.get("pod", first)["metadata"]["annotations"]
    assert f"{GROUP}/desired-state" in annotated  # so that the kubelet looks at once
    serving.report(pods[0], says("bot", V2, V1, "Draining"))
    until("it is seen", lambda: "Draining" in str(serving.get(ADP, "bot")["status"]["podStatus"]))
    assert serving.desired()[0]["pods"] == [first]
    serving.report(pods[0], says("bot", V2, V2))
    until("the second pod moves", lambda: serving.desired()[0].get("pods") == [first, second])
    serving.report(
        pods[1], says("bot", V2, V1, "Refused", reason="ProofFailed", message="only 3% of its effect is there")
    )
    message = serving.await_condition("bot", "Stalled", "True", "RolledBack")
    assert second in message
    assert "only 3%" in message
    assert serving.get(ADP, "bot")["status"]["active"]["digest"] == V1


def test_what_does_not_fit_the_engine_is_reported_before_any_pod_is_touched(serving: ServingNamespace) -> None:
    engine = manifest()
    engine["spec"]["template"]["spec"]["containers"][0]["args"] += ["--lora-target-modules", "o_proj"]
    serving.kubectl("apply", "-f", "-", stdin=engine)
    before = serving.deployment()["metadata"]["generation"]
    serving.api.create_job("job")
    serving.apply_adapter("bot", adapter={"fineTuneJobRef": {"name": "job"}})
    serving.await_condition("bot", "Ready", "Unknown", "AdapterNotReady")
    true = {"status": "True", "reason": "X", "message": "m", "lastTransitionTime": current_timestamp()}
    conditions = [{"type": kind, **true} for kind in ("Succeeded", "Ready")]
    adapter = {"uri": uri(V1), "digest": V1, "sizeBytes": 1, "baseModel": "m", "peftType": "LORA", "rank": 64}
    adapter["targetModules"] = ["q_proj"]
    serving.operator.kill()  # it would write its own status of the job
    patch = {"status": {"conditions": conditions, "phase": "Succeeded", "adapter": {**adapter, "servableBy": ["vllm"]}}}
    serving.kubectl("patch", "finetunejob", "job", "--subresource=status", "--type=merge", "-p", json.dumps(patch))
    serving.operator.start()
    message = serving.await_condition("bot", "Accepted", "False", "RankTooHigh")
    assert "64" in message
    assert "32" in message
    assert "--lora-target-modules" in message
    assert serving.deployment()["metadata"]["generation"] == before


def test_a_container_that_is_not_there_is_reported_with_those_that_are(serving: ServingNamespace) -> None:
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    serving.apply_adapter("bot", target={"deploymentRef": {"name": "web"}, "container": "engine"})
    message = serving.await_condition("bot", "Accepted", "False", "ContainerNotFound")
    assert "vllm, logger" in message
    assert serving.agent() is None
