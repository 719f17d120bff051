"""A StatefulSet as target: its pods take turns by their ordinals, and what it holds back is said in words."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.kube.kinds import DEPLOYMENT, STATEFUL_SET, Object
from finetune_operator.kube.workloads import WorkloadRef, find_workload, read_group
from finetune_operator.reconcile.adapterdeployment.model import Observed
from finetune_operator.reconcile.adapterdeployment.plan import make_plan
from finetune_operator.resources.injection import config_map_name
from finetune_operator.resources.workloads import has_rolled_out, replaces_pods, rules_of
from tests.adapterdeployment.groups import (
    NAME,
    NOW,
    SETTINGS,
    V1,
    V2,
    adapter,
    build_source,
    edit,
    group,
    make_pass,
    pod,
    read_conditions,
    read_entry,
    report,
    statefulset,
)

REF = WorkloadRef(STATEFUL_SET, NAME)
TARGET = {"statefulSetRef": {"name": NAME}}
ON_DELETE: Object = {"type": "OnDelete"}


def partition(value: int) -> Object:
    return {"type": "RollingUpdate", "rollingUpdate": {"partition": value}}


def stateful(*ordinals: int, workload: Object | None = None, **spec: Any) -> Observed:
    """A group with a StatefulSet, whose pods of these ordinals have an agent that serves V1."""
    pods = tuple(pod(f"web-{ordinal}") for ordinal in ordinals)
    reports = {f"web-{ordinal}": report(V1, V1) for ordinal in ordinals}
    observed = group(adapter(target=TARGET, **spec), pods=pods, agent_reports=reports)
    return replace(observed, target=REF, workload=workload or statefulset())


def message(observed: Observed) -> str:
    (resource,) = observed.resources
    return str(next(item["message"] for item in resource["status"]["conditions"] if item["type"] == "Ready"))


def test_a_deployment_and_a_stateful_set_of_one_name_are_two_groups() -> None:
    groups = [WorkloadRef(kind, NAME).group for kind in (DEPLOYMENT, STATEFUL_SET)]
    assert groups == ["web", "statefulset/web"]
    assert [read_group(name) for name in groups] == [WorkloadRef(DEPLOYMENT, NAME), REF]
    names = [config_map_name(name) for name in groups]
    assert names == ["finetune-adapters-web", "finetune-adapters.statefulset.web"]
    assert len(config_map_name("statefulset/" + "a" * 250)) <= 253
    assert find_workload(TARGET) == REF
    assert find_workload({"selector": {}}) is None


def test_the_agent_reads_the_config_map_of_the_stateful_set() -> None:
    plan = make_plan(stateful(), NOW, SETTINGS)
    assert plan.injection is not None
    assert plan.config_map is not None
    template = plan.injection.body["spec"]["template"]
    (volume,) = [item for item in template["spec"]["volumes"] if item["name"] == "finetune-desired"]
    assert volume["configMap"]["name"] == plan.config_map["metadata"]["name"] == "finetune-adapters.statefulset.web"
    assert template["metadata"]["annotations"] == {"finetune-operator.io/deployment": "statefulset/web"}


def test_the_highest_ordinal_takes_a_version_first() -> None:
    workload = statefulset(11)
    observed = make_pass(stateful(*range(11), workload=workload))
    assert read_conditions(observed)["Ready"] == ("True", "Serving")
    assert read_entry(make_pass(edit(observed, adapter=build_source(V2)))) == (V2, V1, ["web-10"])


def test_a_canary_begins_with_the_highest_ordinals() -> None:
    observed = make_pass(stateful(0, 1, 2, strategy={"canary": {"steps": [{"pods": 1}]}}))
    observed = make_pass(edit(observed, adapter=build_source(V2)))
    assert read_entry(observed) == (V2, V1, ["web-2"])
    reports = {**observed.agent_reports, "web-2": report(V2, V2)}
    observed = make_pass(replace(observed, agent_reports=reports))
    assert read_conditions(observed)["Ready"] == ("False", "CanaryPaused")
    assert read_entry(observed)[2] == ["web-2"]


HELD = {
    "OnDelete": (ON_DELETE, {"updatedReplicas": 1}, [2], "kubectl delete pod web-0 web-1"),
    "a partition": (partition(2), {"updatedReplicas": 1}, [2], "partition 2, so Kubernetes gives these pods no agent"),
}


@pytest.mark.parametrize(("strategy", "status", "ordinals", "text"), HELD.values(), ids=HELD.keys())
def test_pods_that_a_strategy_holds_back_are_named(
    strategy: Object, status: Object, ordinals: list[int], text: str
) -> None:
    observed = make_pass(stateful(*ordinals, workload=statefulset(3, strategy, **status)))
    assert read_conditions(observed)["Ready"] == ("Unknown", "TargetPaused")
    assert text in message(observed)
    assert "web-2" not in message(observed)


@pytest.mark.parametrize("strategy", [ON_DELETE, partition(2), partition(5)])
def test_pods_below_a_partition_serve_once_they_have_the_agent(strategy: Object) -> None:
    """Their image may be older than the template for as long as the user likes."""
    observed = make_pass(stateful(0, 1, 2, workload=statefulset(3, strategy, updatedReplicas=1)))
    assert read_conditions(observed)["Ready"] == ("True", "Serving")


def test_pods_above_a_partition_that_are_replaced_are_awaited() -> None:
    workload = statefulset(3, partition(1), updatedReplicas=1)
    assert not has_rolled_out(workload, 3)
    assert read_conditions(make_pass(stateful(0, 1, 2, workload=workload)))["Ready"] == ("Unknown", "RollingOut")


def test_a_first_ordinal_other_than_zero_counts() -> None:
    workload = statefulset(2, ON_DELETE, updatedReplicas=0)
    workload["spec"]["ordinals"] = {"start": 5}
    assert "kubectl delete pod web-5 web-6" in message(make_pass(stateful(workload=workload)))


def test_a_long_list_of_pods_is_cut() -> None:
    text = message(make_pass(stateful(workload=statefulset(40, ON_DELETE, updatedReplicas=0))))
    assert "web-9 and 30 more" in text


COSTS_NOTHING = {
    "it replaces its pods": (statefulset(3, updatedReplicas=1), True),
    "it has replaced them": (statefulset(3), False),
    "it has none": (statefulset(0), True),
    "above the partition": (statefulset(3, partition(1), updatedReplicas=1), True),
    "down to the partition": (statefulset(3, partition(1), updatedReplicas=2), False),
    "all below the partition": (statefulset(3, partition(3), updatedReplicas=0), True),
    "OnDelete, none deleted": (statefulset(3, ON_DELETE, updatedReplicas=0), True),
    "OnDelete, one deleted": (statefulset(3, ON_DELETE, updatedReplicas=1), False),
    "it is being scaled up": (statefulset(3, replicas=2, updatedReplicas=2), False),
    "a status of an older spec": (statefulset(3, updatedReplicas=1, observedGeneration=0), False),
}


@pytest.mark.parametrize(("workload", "free"), COSTS_NOTHING.values(), ids=COSTS_NOTHING.keys())
def test_when_a_change_of_the_template_restarts_no_pod(workload: Object, free: bool) -> None:
    assert replaces_pods(workload) is free


def broken(reason: str = "ImagePullBackOff", revision: str = "old") -> Object:
    found = pod("web-2", ready=False)
    found["metadata"]["labels"] = {"controller-revision-hash": revision}
    found["status"]["initContainerStatuses"] = [{"name": "finetune-agent", "state": {"waiting": {"reason": reason}}}]
    return found


def test_a_broken_pod_that_kubernetes_never_replaces_is_named() -> None:
    """https://github.com/kubernetes/kubernetes/issues/67250."""
    rolling = statefulset(3, updatedReplicas=0, updateRevision="new")
    blocker = rules_of(STATEFUL_SET).find_blocker(rolling, [broken()])
    assert blocker is not None
    text = blocker[1]
    assert "kubectl delete pod web-2" in text
    assert "ImagePullBackOff" in text
    assert rules_of(STATEFUL_SET).find_blocker(rolling, [broken("PodInitializing")]) is None
    assert rules_of(STATEFUL_SET).find_blocker(rolling, [broken(revision="new")]) is None
    rolling["spec"]["podManagementPolicy"] = "Parallel"
    assert rules_of(STATEFUL_SET).find_blocker(rolling, [broken()]) is None


def test_only_pods_that_the_stateful_set_controls_are_its_own() -> None:
    def owned(kind: str, name: str, controller: bool = True) -> Object:
        references = [{"kind": kind, "name": name, "uid": "x", "controller": controller}]
        return {"metadata": {"name": "web-0", "ownerReferences": references}}

    owns = rules_of(STATEFUL_SET).owns
    assert owns(NAME, owned("StatefulSet", NAME))
    assert not owns(NAME, owned("StatefulSet", "other"))
    assert not owns(NAME, owned("ReplicaSet", NAME))
    assert not owns(NAME, owned("StatefulSet", NAME, controller=False))
    assert not owns(NAME, {"metadata": {"name": "web-0"}})
