"""The strategy Rolling: what the pod template carries, and when it changes."""

import json
from dataclasses import replace
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_engines import ENGINES
from finetune_engines.arguments import read_engine_args
from finetune_operator.kube.kinds import Object
from finetune_operator.reconcile.adapterdeployment.model import Injection, Observed
from finetune_operator.reconcile.adapterdeployment.plan import make_plan
from finetune_operator.resources.desired_state import read_config_map
from tests.adapterdeployment.groups import (
    NOW,
    SETTINGS,
    V1,
    V2,
    adapter,
    build_source,
    deployment,
    edit,
    group,
    make_pass,
    pod,
    read_conditions,
    read_entry,
    report,
)

ROLLING = {"type": "Rolling"}
LOADED = ["--model=/m", "--enable-lora", "--lora-modules", "bot-name=$(FINETUNE_PATH_BOT)"]


def plan_injection(observed: Observed, image: str = "operator:1") -> Injection:
    injection = make_plan(observed, NOW, replace(SETTINGS, operator_image=image)).injection
    assert injection is not None
    return injection


def put_in(observed: Observed, **settings: Any) -> Observed:
    """Apply what the operator plans; all pods are replaced by then."""
    body = plan_injection(observed, **settings).body
    workload = json.loads(json.dumps(observed.workload))
    template, own = workload["spec"]["template"], body["spec"]["template"]
    template["metadata"] = own["metadata"]
    template["spec"] |= {name: own["spec"][name] for name in ("initContainers", "volumes")}
    template["spec"]["containers"][0] |= own["spec"]["containers"][0]
    workload["metadata"] |= {name: body["metadata"][name] for name in ("labels", "annotations")}
    agent: Object = {'k:{"name":"finetune-agent"}': {"f:image": {}}}
    fields = {"f:spec": {"f:template": {"f:spec": {"f:initContainers": agent}}}}
    workload["metadata"]["managedFields"] = [
        {"manager": "finetune-operator", "operation": "Apply", "fieldsV1": fields},
    ]
    return replace(observed, workload=workload)


def read_template_state(body: Object) -> Object:
    text = body["spec"]["template"]["metadata"]["annotations"]["finetune-operator.io/versions"]
    state: Object = json.loads(text)
    return state


def read_environment(body: Object) -> dict[str, str]:
    return {item["name"]: item["value"] for item in body["spec"]["template"]["spec"]["containers"][0].get("env", [])}


def test_another_version_changes_the_template_and_nothing_else_does() -> None:
    first = put_in(group(adapter(strategy=ROLLING)))
    assert not plan_injection(first).due
    assert not plan_injection(first, image="operator:2").due  # an upgrade restarts nothing
    scaled = json.loads(json.dumps(first.workload))
    scaled["spec"]["replicas"] = 1
    assert not plan_injection(replace(first, workload=scaled)).due
    second = edit(first, adapter=build_source(V2))
    assert plan_injection(second).due
    (adapter_in_template,) = read_template_state(plan_injection(second).body)["adapters"]
    assert adapter_in_template["version"]["digest"] == V2
    assert "previous" not in adapter_in_template
    assert read_entry(make_pass(second)) == (V2, None, None)


def test_the_version_of_a_rollback_changes_no_template() -> None:
    """The last good version is what the ConfigMap of Hot keeps on the disks; a pod of Rolling has one version."""
    first = put_in(group(adapter(strategy=ROLLING)))
    entry = {"uri": "s3://b/a", "digest": V2, "since": "2026-01-01T00:00:00Z", "event": "Deployed"}
    served = adapter(strategy=ROLLING, status={"history": [{**entry, "until": "2026-01-01T01:00:00Z"}]})
    observed = replace(first, resources=(served,))
    state = read_config_map(make_plan(observed, NOW, SETTINGS).config_map)
    assert state.adapters[0].last_good is not None
    assert not plan_injection(observed).due


def test_a_new_secret_comes_with_its_version() -> None:
    first = put_in(group(adapter(strategy=ROLLING)))
    second = edit(first, adapter={**build_source(V2), "secretRef": {"name": "other"}})
    assert read_conditions(make_pass(second))["Accepted"][0] == "True"
    agent = plan_injection(second).body["spec"]["template"]["spec"]["initContainers"][0]
    assert "/etc/finetune/secrets/other" in {mount["mountPath"] for mount in agent["volumeMounts"]}
    hot = put_in(group(adapter()))
    changed = edit(hot, strategy=ROLLING, adapter={**build_source(V2), "secretRef": {"name": "other"}})
    assert read_conditions(make_pass(changed))["Accepted"][0] == "True"


def test_an_engine_whose_arguments_name_the_version_needs_no_route_for_loading() -> None:
    path = "/adapters/bot-name/" + V1.removeprefix("sha256:")
    observed = group(adapter(strategy=ROLLING), workload=deployment(args=LOADED))
    assert read_environment(plan_injection(observed).body) == {"FINETUNE_PATH_BOT": path}
    script = ["sh", "-c", "exec vllm serve /m --enable-lora --lora-modules bot-name=${FINETUNE_PATH_BOT}"]
    observed = group(adapter(strategy=ROLLING), workload=deployment(args=script))
    assert read_environment(plan_injection(observed).body) == {"FINETUNE_PATH_BOT": path}
    other = [*LOADED[:-1], "bot-name=$(FINETUNE_PATH_BOT_2)"]
    observed = group(adapter(strategy=ROLLING), workload=deployment(args=other))
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in read_environment(plan_injection(observed).body)


def test_the_variable_hides_no_argument() -> None:
    arguments = read_engine_args({"args": LOADED}, ENGINES["vllm"])
    assert arguments.max_lora_rank == 16
    assert read_engine_args({"args": [*LOADED[:-1], "bot-name=$(MINE)"]}, ENGINES["vllm"]).max_lora_rank is None


def test_a_pod_that_refuses_the_version_brings_back_the_template_before() -> None:
    first = put_in(group(adapter(strategy=ROLLING)))
    served = replace(first, agent_reports={f"web-{name}": report(V1, V1) for name in "abc"})
    served = make_pass(make_pass(served))
    assert read_conditions(served)["Ready"] == ("True", "Serving")
    before = plan_injection(served).body
    second = put_in(edit(served, adapter=build_source(V2)))
    refused = report(V2, None, state="Refused", reason=Reason.PROOF_FAILED, message="only 3% of its effect is there")
    rolling = replace(
        second,
        pods=(*second.pods, pod("web-d", ready=False)),
        agent_reports={**served.agent_reports, "web-d": refused},
    )
    back = make_pass(rolling)
    assert read_conditions(back)["Stalled"] == ("True", "RolledBack")
    assert plan_injection(back).due
    assert plan_injection(back).body == before  # so that Kubernetes finds the ReplicaSet of the pods before


def test_a_change_of_the_strategy_replaces_the_pods() -> None:
    hot, rolling = group(adapter()), group(adapter(strategy=ROLLING))
    assert plan_injection(replace(rolling, workload=put_in(hot).workload)).due
    assert plan_injection(replace(hot, workload=put_in(rolling).workload)).due


@pytest.mark.parametrize("suspend", [True, False])
def test_a_suspended_one_keeps_its_template(suspend: bool) -> None:
    first = make_pass(put_in(group(adapter(strategy=ROLLING))))
    assert plan_injection(edit(first, adapter=build_source(V2), suspend=suspend)).due is not suspend


def test_all_of_a_deployment_have_one_type() -> None:
    second = adapter("other", created="2026-01-01T00:00:01Z")
    plan = make_plan(group(adapter(strategy=ROLLING), second), NOW, SETTINGS)
    obstacle = plan.members[1].obstacle
    assert obstacle is not None
    assert "type Rolling" in obstacle.message
