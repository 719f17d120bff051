"""Rolling, by the operator against a real API server and a real Deployment controller."""

import json
from typing import Any

import pytest

from tests.adapterdeployment.groups import V1, V2, uri
from tests.adapterdeployment.serving import ADP, GROUP, ServingNamespace, manifest, says
from tests.adapterdeployment.test_cluster import own
from tests.adapterdeployment.test_release_on_the_server import build_source, run_finetune, status
from tools.testing.kubernetes_api import Object
from tools.testing.waiting import until

pytestmark = [pytest.mark.cluster]

ROLLING = {"type": "Rolling"}
ARGUMENT = "--lora-modules=bot-name=$(FINETUNE_PATH_BOT)"


def template(serving: ServingNamespace) -> Object:
    found: Object = serving.deployment()["spec"]["template"]
    return found


def read_template_version(serving: ServingNamespace) -> str | None:
    """Return the version in the pod template."""
    text = template(serving)["metadata"].get("annotations", {}).get(f"{GROUP}/versions")
    return str(json.loads(text)["adapters"][0]["version"]["digest"]) if text else None


def read_environment(serving: ServingNamespace) -> dict[str, str]:
    """The engine's variables."""
    return {item["name"]: item["value"] for item in template(serving)["spec"]["containers"][0].get("env", [])}


def find_set(serving: ServingNamespace) -> str:
    """The ReplicaSet that all pods belong to, once the Deployment has replaced the others."""

    def ask() -> str | None:
        names = {str(pod["metadata"]["ownerReferences"][0]["name"]) for pod in serving.pods()}
        found = serving.deployment()
        is_observed = found["status"]["observedGeneration"] == found["metadata"]["generation"]
        is_updated = found["status"].get("updatedReplicas") == found["status"].get("replicas")
        return names.pop() if is_observed and is_updated and len(names) == 1 else None

    return until("all pods are replaced", ask)


def serve(serving: ServingNamespace, digest: str) -> str:
    """Let the Deployment replace its pods, and these prove the version; return their ReplicaSet."""
    until("the template has it", lambda: read_template_version(serving) == digest)
    name = find_set(serving)
    for pod in serving.pods():
        serving.report(pod, says("bot", digest, digest))
    until("it is active", lambda: status(serving).get("active", {}).get("digest") == digest)
    serving.await_condition("bot", "Injected", "True", "AgentInjected")
    return name


def start(serving: ServingNamespace, engine: Object | None = None, **spec: Any) -> str:
    """Let the pods serve the first version."""
    serving.kubectl("apply", "-f", "-", stdin=engine or manifest())
    serving.apply_adapter("bot", strategy=ROLLING, **spec)
    return serve(serving, V1)


def test_another_version_replaces_the_pods_and_what_was_put_in_is_taken_out_to_the_byte(
    serving: ServingNamespace,
) -> None:
    engine = manifest()
    engine["spec"]["template"]["spec"]["containers"][0]["args"].append(ARGUMENT)
    serving.kubectl("apply", "-f", "-", stdin=engine)
    until(
        "the first revision",
        lambda: serving.deployment()["metadata"].get("annotations", {}).get("deployment.kubernetes.io/revision"),
    )
    before = own(serving.deployment())
    first = start(serving, engine)
    names = [container["name"] for container in template(serving)["spec"]["initContainers"]]
    assert names == ["warm-up", "finetune-agent", "finetune-fetch"]  # the agent runs while the other one waits for it
    assert read_environment(serving) == {"FINETUNE_PATH_BOT": f"/adapters/bot-name/{V1.removeprefix('sha256:')}"}
    generation = serving.deployment()["metadata"]["generation"]
    serving.apply_adapter("bot", V2, strategy=ROLLING)
    assert serve(serving, V2) != first
    assert serving.deployment()["metadata"]["generation"] == generation + 1
    assert read_environment(serving) == {"FINETUNE_PATH_BOT": f"/adapters/bot-name/{V2.removeprefix('sha256:')}"}
    serving.await_condition("bot", "Ready", "True", "Serving")
    serving.kubectl("delete", ADP, "bot")
    until("the agent is out", lambda: serving.agent() is None)
    assert own(serving.deployment()) == before


def test_an_engine_whose_arguments_do_not_name_the_version_may_load_it_at_run_time(serving: ServingNamespace) -> None:
    start(serving)
    assert read_environment(serving)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_an_engine_without_lora_is_started_with_each_merged_model(serving: ServingNamespace) -> None:
    engine = manifest()
    container = engine["spec"]["template"]["spec"]["containers"][0]
    container["args"] = ["serve", "/models/base"]
    target = {"deploymentRef": {"name": "web"}, "engine": "merged", "container": container["name"]}
    serving.kubectl("apply", "-f", "-", stdin=engine)
    serving.apply_adapter("bot", strategy=ROLLING, target=target)
    refused = serving.await_condition("bot", "Accepted", "False", "ModelNotNamed")
    assert "$(FINETUNE_PATH_BOT)" in refused
    assert serving.agent() is None
    container["args"] = ["serve", "$(FINETUNE_PATH_BOT)"]
    first = start(serving, engine, target=target)
    assert read_environment(serving) == {"FINETUNE_PATH_BOT": f"/adapters/bot-name/{V1.removeprefix('sha256:')}"}
    serving.apply_adapter("bot", V2, strategy=ROLLING, target=target)
    assert serve(serving, V2) != first
    serving.await_condition("bot", "Ready", "True", "Serving")


def test_a_version_that_a_new_pod_refuses_goes_back_to_the_pods_before(serving: ServingNamespace) -> None:
    first = start(serving)
    old = {pod["metadata"]["name"] for pod in serving.pods()}
    serving.apply_adapter("bot", V2, strategy=ROLLING)
    new: Object = until(
        "a new pod", lambda: next((pod for pod in serving.api.pods() if pod["metadata"]["name"] not in old), None)
    )
    serving.run(new, ready=False)
    refused = says("bot", V2, None, "Refused", reason="ProofFailed", message="only 3% of its effect is there")
    serving.report(new, refused)
    assert "only 3%" in serving.await_condition("bot", "Stalled", "True", "RolledBack")
    until("the template goes back", lambda: read_template_version(serving) == V1)
    assert find_set(serving) == first
    assert {pod["metadata"]["name"] for pod in serving.pods()} == old
    assert serving.get(ADP, "bot")["spec"]["adapter"]["digest"] == V2


def test_a_person_goes_back_by_the_status_and_an_undone_deployment_follows_the_spec_again(
    serving: ServingNamespace,
) -> None:
    first = start(serving)
    serving.apply_adapter("bot", V2, strategy=ROLLING)
    serve(serving, V2)
    revision = serving.deployment()["metadata"]["annotations"]["deployment.kubernetes.io/revision"]
    serving.kubectl("rollout", "undo", "deployment/web")
    until(
        "it is undone, and put right",
        lambda: serving.deployment()["metadata"]["annotations"]["deployment.kubernetes.io/revision"] > revision,
    )
    serve(serving, V2)
    assert "goes back" in run_finetune(serving, "rollback", "bot")
    serving.await_condition("bot", "Stalled", "True", "RolledBack")
    assert serve(serving, V1) == first
    run_finetune(serving, "rollback", "bot", "--undo")
    serve(serving, V2)


def test_what_an_undone_deployment_carries_is_taken_out_too(serving: ServingNamespace) -> None:
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    before = own(serving.deployment())
    start(serving)
    serving.apply_adapter("bot", V2, strategy=ROLLING)
    serve(serving, V2)
    serving.operator.kill()
    serving.kubectl("rollout", "undo", "deployment/web")
    assert read_template_version(serving) == V1
    serving.kubectl("delete", ADP, "bot")
    serving.operator.start()
    until("the agent is out", lambda: serving.agent() is None)
    until("nothing is ours", lambda: "finetune" not in json.dumps(own(serving.deployment())).lower())
    after = own(serving.deployment())
    after["metadata"].pop("annotations", None), before["metadata"].pop("annotations", None)
    assert after == before


def test_the_strategy_can_be_changed_both_ways(serving: ServingNamespace) -> None:
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    serving.apply_adapter("bot", strategy={"type": "Hot"})
    serving.await_condition("bot", "Injected", "True", "AgentInjected")
    serving.await_rollout()
    serving.apply_adapter("bot", strategy=ROLLING)
    serve(serving, V1)
    serving.apply_adapter("bot", strategy={"type": "Hot"})
    until("the template has no version", lambda: read_template_version(serving) is None)
    serving.await_rollout()
    spec = template(serving)["spec"]
    assert [container["name"] for container in spec["initContainers"]] == ["warm-up", "finetune-agent"]
    assert "finetune-versions" not in {volume["name"] for volume in spec["volumes"]}
    generation = serving.deployment()["metadata"]["generation"]
    serving.apply_adapter("bot", strategy={"type": "Hot"}, adapter=build_source(V2))
    until("the new version is told", lambda: serving.desired()[0]["version"]["digest"] == V2)
    assert serving.deployment()["metadata"]["generation"] == generation


def test_one_rule_for_all_of_a_deployment(serving: ServingNamespace) -> None:
    start(serving)
    serving.apply_adapter("other", V2, adapter={"uri": uri(V2), "digest": V2})
    message = serving.await_condition("other", "Accepted", "False", "SpecInvalid")
    assert "type Rolling" in message
    assert read_template_version(serving) == V1
