"""Pods by a selector as target: their user puts the agent in, and the operator says what is missing."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_api.label_selector import WRONG_KEY
from finetune_api.messages import DesiredState
from finetune_api.reasons import Reason
from finetune_engines import ENGINES
from finetune_operator.cache import Cache
from finetune_operator.enqueue import find_serving_groups
from finetune_operator.kube.kinds import ADAPTER_DEPLOYMENT, CONFIG_MAP, POD, SERVING_GROUP, Object
from finetune_operator.kube.workloads import WorkloadRef, find_workload, read_group
from finetune_operator.pod_reports import PodReports
from finetune_operator.reconcile.adapterdeployment.gather import gather
from finetune_operator.reconcile.adapterdeployment.model import Observed, Plan
from finetune_operator.reconcile.adapterdeployment.plan import WAIT_SECONDS, make_plan
from finetune_operator.resources.desired_state import build_config_map
from finetune_operator.resources.injection import AgentParameters, build_injection, build_snippet, config_map_name
from finetune_operator.resources.workloads import rules_of
from finetune_operator.resources.workloads.pods import find_missing, view_pods
from tests.adapterdeployment.groups import (
    NAMESPACE,
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
    read_conditions,
    read_entry,
    report,
    uri,
)

LABELS = {"app": "llama", "role": "leader"}
TARGET = {"selector": {"matchLabels": LABELS}}
REF = WorkloadRef(POD, "app=llama,role=leader")
NAME = config_map_name(REF.group)
GUIDE = Path("docs/own-agent.md")


def build_template(*secrets: str) -> Object:
    """What the operator itself would put into these pods."""
    parameters = AgentParameters("vllm", ENGINES["vllm"], secrets, "finetune-operator", "IfNotPresent", "")
    return build_snippet(REF.group, parameters)


def pod(name: str, *secrets: str, agent: bool = True) -> Object:
    """A pod with the agent of its user, or without."""
    engine = deployment()["spec"]["template"]["spec"]["containers"][0]
    spec: Object = {"containers": [engine]}
    labels: Object = dict(LABELS)
    if agent:
        template = build_template(*secrets)
        spec = {**template["spec"], "containers": [{**engine, **template["spec"]["containers"][0]}]}
        labels |= template["metadata"]["labels"]
    return {
        "metadata": {"namespace": NAMESPACE, "name": name, "uid": f"p-{name}", "labels": labels},
        "spec": spec,
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }


def observe(*pods: Object, **spec: Any) -> Observed:
    """What a pass gathers of these pods, whose agents all serve V1."""
    own = tuple(item for item in pods if rules_of(POD).owns(REF.name, item))
    plain = group(adapter(target=TARGET, **spec), pods=own, workload=view_pods(NAMESPACE, REF.name, pods))
    reports = {item["metadata"]["name"]: report(V1, V1) for item in own}
    return replace(plain, target=REF, agent_reports=reports)


def read_message(observed: Observed, kind: str) -> str:
    (resource,) = observed.resources
    return str(next(item["message"] for item in resource["status"]["conditions"] if item["type"] == kind))


def test_equal_selectors_are_one_group() -> None:
    turned = {"selector": {"matchLabels": dict(reversed(LABELS.items()))}}
    assert find_workload(TARGET) == find_workload(turned) == REF
    slash = WorkloadRef(POD, "leaderworkerset.sigs.k8s.io/name=llama")
    assert read_group(slash.group) == slash
    assert config_map_name(slash.group) != NAME
    assert NAME.startswith("finetune-adapters.pods.")


def test_the_agent_that_users_put_in_is_that_of_a_deployment() -> None:
    parameters = AgentParameters("vllm", ENGINES["vllm"], ("keys",), "image", "IfNotPresent", "http://operator")
    injected = build_injection(deployment(), parameters)["spec"]["template"]
    snippet = build_snippet(REF.group, parameters)
    assert snippet["metadata"]["labels"] == injected["metadata"]["labels"]
    assert snippet["spec"] == json.loads(json.dumps(injected["spec"]).replace(config_map_name("web"), NAME))


def test_pods_with_the_agent_serve_and_nothing_is_patched() -> None:
    observed = make_pass(observe(pod("a"), pod("b")))
    assert read_conditions(observed)["Injected"] == ("True", "AgentInjected")
    assert read_conditions(observed)["Ready"] == ("True", "Serving")
    plan = make_plan(observed, NOW, SETTINGS)
    assert plan.injection is None
    assert plan.requeue_after == WAIT_SECONDS  # pods without an agent are not watched
    observed = make_pass(edit(observed, adapter=build_source(V2)))
    assert read_entry(observed) == (V2, V1, ["a"])


def test_the_status_names_the_selector_for_the_column_of_kubectl_get() -> None:
    (resource,) = make_pass(observe(pod("a"))).resources
    assert resource["status"]["target"] == "app=llama,role=leader"


def test_pods_without_the_agent_are_named_while_the_others_serve() -> None:
    observed = make_pass(observe(pod("a"), pod("b", agent=False)))
    assert read_conditions(observed)["Injected"] == ("False", "AgentMissing")
    assert read_conditions(observed)["Ready"] == ("Unknown", "AgentMissing")
    for kind in ("Injected", "Ready"):
        message = read_message(observed, kind)
        assert "1 of 2 pods with app=llama,role=leader cannot serve: pod b has no container finetune-agent." in message
        assert f"their ConfigMap is {NAME}" in message
        assert str(GUIDE) in message
    assert read_entry(observed)[0] == V1


def test_many_pods_without_the_agent_are_counted() -> None:
    found = read_message(make_pass(observe(*(pod(f"p-{index}", agent=False) for index in range(9)))), "Ready")
    assert "9 of 9 pods" in found
    assert "and 6 more pods" in found


def drop_label(item: Object) -> None:
    del item["metadata"]["labels"]["finetune-operator.io/role"]


def drop_mount(path: str) -> Any:
    def drop(item: Object) -> None:
        agent = item["spec"]["initContainers"][0]
        agent["volumeMounts"] = [mount for mount in agent["volumeMounts"] if mount["mountPath"] != path]

    return drop


def drop_engine_mount(item: Object) -> None:
    item["spec"]["containers"][0]["volumeMounts"] = []


def read_another(item: Object) -> None:
    (volume,) = [volume for volume in item["spec"]["volumes"] if volume["name"] == "finetune-desired"]
    volume["configMap"]["name"] = "finetune-adapters-web"


DAMAGE = {
    "no label": (drop_label, "label finetune-operator.io/role: agent"),
    "no desired state": (drop_mount("/etc/finetune/desired"), f"volume of ConfigMap {NAME} at /etc/finetune/desired"),
    "another desired state": (read_another, "in container finetune-agent in place of finetune-adapters-web"),
    "no token": (drop_mount("/var/run/secrets/finetune-operator.io"), "volume of the token"),
    "no adapters": (drop_mount("/adapters"), "one volume at /adapters"),
    "no adapters in the engine": (drop_engine_mount, "one volume at /adapters"),
}


@pytest.mark.parametrize(("damage", "text"), DAMAGE.values(), ids=DAMAGE.keys())
def test_each_part_that_is_missing_is_named(damage: Any, text: str) -> None:
    item = pod("a")
    assert find_missing(item, NAME) == []
    damage(item)
    (missing,) = find_missing(item, NAME)
    assert text in missing


def test_an_agent_as_an_ordinary_container_counts() -> None:
    """Charts that take no init containers take further containers."""
    item = pod("a")
    item["spec"]["containers"].append(item["spec"].pop("initContainers")[0])
    assert find_missing(item, NAME) == []


def test_without_pods_the_status_says_what_they_need() -> None:
    observed = make_pass(observe())
    assert read_conditions(observed)["Ready"] == ("Unknown", "TargetNotFound")
    message = read_message(observed, "Ready")
    assert "spec.target.selector: there are no pods with app=llama,role=leader" in message
    assert NAME in message


def using(secret: str) -> Object:
    return {"uri": uri(V1), "digest": V1, "secretRef": {"name": secret}}


def test_a_secret_must_be_mounted_in_every_agent() -> None:
    found = observe(pod("a", "keys"), pod("b", "keys"), adapter=using("keys"))
    assert read_conditions(make_pass(found))["Ready"] == ("True", "Serving")
    lacking = make_pass(observe(pod("a", "keys"), pod("b"), adapter=using("keys")))
    assert read_conditions(lacking)["Ready"] == ("False", "RestartRequired")
    assert "mounted in all of them are: none" in read_message(lacking, "Ready")
    assert "mount it at /etc/finetune/secrets/keys" in read_message(lacking, "Ready")


def test_after_the_last_one_the_agents_are_told_to_serve_nothing_as_long_as_there_are_any() -> None:
    """A pod that starts without its ConfigMap would take no traffic."""
    served = make_pass(observe(pod("a")))
    left = make_plan(replace(served, resources=()), NOW, SETTINGS)
    assert left.state == DesiredState(engine="vllm", port=8000, max_lora_rank=16, adapters=[])
    assert left.requeue_after == WAIT_SECONDS
    assert not left.remove
    gone = replace(served, resources=(), pods=())
    assert make_plan(gone, NOW, SETTINGS) == Plan(remove=True)
    assert make_plan(replace(served, resources=(), config_map=None), NOW, SETTINGS) == Plan(remove=True)


def test_a_pod_concerns_the_groups_whose_selectors_choose_it() -> None:
    cache = Cache()
    cache.put(ADAPTER_DEPLOYMENT, adapter(target=TARGET))
    cache.put(ADAPTER_DEPLOYMENT, adapter("two", target=TARGET))
    cache.put(ADAPTER_DEPLOYMENT, adapter("other", target={"selector": {"matchLabels": {"app": "other"}}}))
    key = (SERVING_GROUP, NAMESPACE, REF.group)
    assert find_serving_groups(POD, pod("a"), cache) == [key]
    assert find_serving_groups(CONFIG_MAP, build_config_map(NAMESPACE, REF.group, DesiredState()), cache) == [key]
    assert find_serving_groups(ADAPTER_DEPLOYMENT, adapter(target=TARGET), cache) == [key]
    assert [item["metadata"]["name"] for item in cache.list_targeting(NAMESPACE, REF.group)] == ["bot", "two"]


def test_pods_are_not_listed_by_labels_that_the_api_server_refuses_and_the_user_is_told() -> None:
    """A CRD without its rule may have let such a selector in."""
    cache = Cache()
    wrong = adapter(target={"selector": {"matchLabels": {"a b": "c"}}})
    cache.put(ADAPTER_DEPLOYMENT, wrong)
    (key,) = find_serving_groups(ADAPTER_DEPLOYMENT, wrong, cache)

    async def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the API server is asked")

    context: Any = SimpleNamespace(
        cache=cache,
        kube=SimpleNamespace(list=refuse, get=refuse),
        pod_reports=PodReports(),
        analyses=SimpleNamespace(find=lambda _: None),
        leadership=SimpleNamespace(measure_seconds=lambda: 60.0),
    )
    observed = asyncio.run(gather(key, context))
    (member,) = make_plan(observed, NOW, SETTINGS).members
    assert member.obstacle is not None
    assert member.obstacle.reason is Reason.SPEC_INVALID
    assert WRONG_KEY in member.obstacle.message
    cache.remove(ADAPTER_DEPLOYMENT, wrong)
    assert make_plan(asyncio.run(gather(key, context)), NOW, SETTINGS) == Plan(remove=True)
