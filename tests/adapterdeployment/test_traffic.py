"""A canary by shares of the requests: every pod holds the versions, and a gateway divides the requests."""

import copy
import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Self

import pytest

from finetune_api.messages import AgentAdapter, AgentReport
from finetune_api.timestamps import format_timestamp
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.traffic import divide
from finetune_operator.reconcile.adapterdeployment.model import Gateway, Observed, Plan
from finetune_operator.reconcile.adapterdeployment.plan import make_plan
from finetune_operator.reconcile.adapterdeployment.status import build_updates
from finetune_operator.resources.desired_state import read_config_map
from tests.adapterdeployment.groups import (
    NOW,
    SETTINGS,
    V1,
    V2,
    V3,
    adapter,
    build_source,
    deployment,
    group,
    pod,
    read_conditions,
)

ALLOWED = replace(SETTINGS, model_rewrites=True)
POOL = {"metadata": {"name": "pool"}, "spec": {"selector": {"matchLabels": {"app": "vllm"}}}}
STEPS = [{"trafficPercent": 5, "pauseSeconds": 60}, {"trafficPercent": 50}]
BOT = "bot-name"
OLD, NEW = f"{BOT}@111111111111", f"{BOT}@222222222222"


class Cluster:
    """A serving group whose pods and gateway do what the operator tells them, pass by pass."""

    def __init__(self, **spec: Any) -> None:
        """Begin with three pods without an adapter."""
        traffic = {"inferenceModelRewrite": {"poolRef": {"name": "pool"}}}
        canary = {"steps": STEPS, "traffic": traffic}
        resource = adapter(strategy={"canary": canary, **spec.pop("strategy", {})}, **spec)
        workload = deployment()
        workload["spec"]["template"]["metadata"]["labels"] = {"app": "vllm"}
        self.now: datetime = NOW
        self.refuses: dict[str, str] = {}
        """Digest that a pod refuses, by the name of the pod."""
        self.observed: Observed = group(resource, workload=workload, gateways={"bot": Gateway((), POOL)})
        self.plan = Plan()

    @classmethod
    def at_first_step(cls) -> Self:
        """Return one in which the second version has just got its first share."""
        cluster = cls()
        cluster.settle()
        cluster.ask_for(V2)
        while NEW not in cluster.shares:
            cluster.make_pass()
        return cluster

    def make_pass(self, seconds: float = 1) -> None:
        """Make a pass, then let agents and API server follow it."""
        self.now += timedelta(seconds=seconds)
        self.plan = make_plan(self.observed, self.now, ALLOWED)
        (update,) = build_updates(self.observed, self.plan, None, self.now)
        (member,), (resource,) = self.plan.members, self.observed.resources
        gateway = self.observed.gateways["bot"]
        if member.rewrite is not None:
            own = next((item for item in gateway.rewrites if item["metadata"]["name"] == "bot"), None)
            created = own["metadata"]["creationTimestamp"] if own else format_timestamp(self.now)
            written = copy.deepcopy(member.rewrite)
            fields = [{"manager": "finetune-operator", "time": format_timestamp(self.now)}]
            written["metadata"] |= {"creationTimestamp": created, "managedFields": fields}
            others = tuple(item for item in gateway.rewrites if item is not own)
            gateway = replace(gateway, rewrites=(*others, written))
        self.observed = replace(
            self.observed,
            resources=({**resource, "status": update.status},),
            config_map=self.plan.config_map or self.observed.config_map,
            gateways={"bot": gateway},
        )
        self.report()

    def report(self) -> None:
        """Let each agent load and prove what it is to hold, unless it refuses it."""
        entries = read_config_map(self.observed.config_map).adapters
        reports = {}
        for item in self.observed.pods:
            name = item["metadata"]["name"]
            held = [entry for entry in entries if entry.pods is None or name in entry.pods]
            adapters = [
                AgentAdapter(
                    deployment="bot",
                    served_name=entry.served_name,
                    digest=entry.version.digest,
                    active_digest=None if self.refuses.get(name) == entry.version.digest else entry.version.digest,
                    state="Refused" if self.refuses.get(name) == entry.version.digest else "Active",
                    reason="ProofFailed" if self.refuses.get(name) == entry.version.digest else None,
                )
                for entry in held
            ]
            reports[name] = AgentReport(engine_ready=True, ready=True, adapters=adapters)
        self.observed = replace(self.observed, agent_reports=reports)

    def settle(self, passes: int = 12) -> None:
        for _ in range(passes):
            self.make_pass()

    def ask_for(self, digest: str) -> None:
        """Let the spec ask for a version."""
        (resource,) = self.observed.resources
        meta = {**resource["metadata"], "generation": resource["metadata"]["generation"] + 1}
        spec = {**resource["spec"], "adapter": build_source(digest)}
        self.observed = replace(self.observed, resources=({**resource, "metadata": meta, "spec": spec},))

    def annotate(self, name: str, **request: Any) -> None:
        """Write a person's request."""
        (resource,) = self.observed.resources
        meta = {**resource["metadata"], "annotations": {f"finetune-operator.io/{name}": json.dumps(request)}}
        self.observed = replace(self.observed, resources=({**resource, "metadata": meta},))

    @property
    def status(self) -> Object:
        (resource,) = self.observed.resources
        status: Object = resource["status"]
        return status

    def read_message(self, kind: str) -> str:
        """Read the message of a condition."""
        return next(str(item["message"]) for item in self.status["conditions"] if item["type"] == kind)

    @property
    def shares(self) -> dict[str, int]:
        """Return what the gateway does with requests for the served name."""
        own = next((item for item in self.observed.gateways["bot"].rewrites if item["metadata"]["name"] == "bot"), None)
        targets = own["spec"]["rules"][0]["targets"] if own else []
        return {target["modelRewrite"]: target["weight"] for target in targets}

    @property
    def held(self) -> dict[str, list[str] | None]:
        """Return the pods that are to hold each version, by the name of the version; None for all."""
        return {entry.served_name: entry.pods for entry in read_config_map(self.observed.config_map).adapters}


@pytest.mark.parametrize(
    ("stable", "resident", "percent", "shares"),
    [
        (None, False, None, None),
        (None, True, None, {"new": 100}),
        ("old", False, 5, {"old": 100}),
        ("old", True, 5, {"old": 95, "new": 5}),
        ("old", True, 100, {"new": 100}),
        ("old", True, None, {"new": 100}),
    ],
)
def test_shares(stable: str | None, resident: bool, percent: int | None, shares: dict[str, int] | None) -> None:
    assert divide(stable, "new", is_resident=resident, percent=percent) == shares


def test_the_first_version_gets_all_requests_once_every_pod_has_proven_it() -> None:
    cluster = Cluster()
    cluster.make_pass()
    assert cluster.held == {OLD: None}
    assert cluster.shares == {}
    cluster.settle()
    assert cluster.shares == {OLD: 100}
    assert read_conditions(cluster.observed)["Ready"] == ("True", "Serving")
    assert cluster.status["active"]["digest"] == V1
    assert cluster.plan.members[0].rewrite is None, "a second pass writes nothing"
    (rule,) = cluster.observed.gateways["bot"].rewrites[0]["spec"]["rules"]
    assert rule["matches"] == [{"model": {"type": "Exact", "value": BOT}}]


def test_a_new_version_is_on_all_pods_before_it_gets_a_request_and_its_share_grows_by_steps() -> None:
    cluster = Cluster()
    cluster.settle()
    cluster.ask_for(V2)
    cluster.make_pass()
    assert cluster.held == {NEW: ["web-a"], OLD: None}, "one pod after another loads it"
    assert cluster.shares == {OLD: 100}
    seen = []
    while NEW not in cluster.shares:
        seen.append(cluster.held[NEW])
        cluster.make_pass()
        assert len(seen) < 10
    assert ["web-a", "web-b"] in seen
    assert cluster.held[NEW] is None
    assert cluster.shares == {OLD: 95, NEW: 5}
    cluster.make_pass()
    assert cluster.status["canary"]["trafficPercent"] == 5
    assert "canary step 1 of 2 (5 % of the requests)" in cluster.read_message("Ready")
    cluster.make_pass(30)
    assert cluster.shares == {OLD: 95, NEW: 5}
    cluster.make_pass(31)
    cluster.settle(3)
    assert cluster.shares == {OLD: 50, NEW: 50}
    assert cluster.status["canary"]["evidence"] == ["step 1 of 2: it answered 5 % of the requests for 60 s"]
    assert read_conditions(cluster.observed)["Suspended"] == ("True", "CanaryPaused")
    cluster.annotate("promotion", startedAt=cluster.status["canary"]["startedAt"], step=2)
    cluster.settle(4)
    assert cluster.shares == {NEW: 100}
    assert cluster.status["active"]["digest"] == V2
    assert cluster.held == {NEW: None, OLD: None}, "the last good version stays for a rollback"
    assert read_conditions(cluster.observed)["Ready"] == ("True", "Serving")


def test_the_version_before_the_last_one_leaves_when_its_successor_comes() -> None:
    cluster = Cluster(strategy={"canary": _quick()})
    for digest in (V1, V2, V3):
        cluster.ask_for(digest)
        cluster.settle(20)
        assert cluster.shares == {f"{BOT}@{digest[7:19]}": 100}
    assert sorted(cluster.held) == [NEW, f"{BOT}@333333333333"]


def test_a_version_that_one_pod_refuses_gets_no_request_and_goes_back() -> None:
    cluster = Cluster()
    cluster.settle()
    cluster.refuses = {"web-c": V2}
    cluster.ask_for(V2)
    cluster.settle(20)
    assert cluster.shares == {OLD: 100}
    assert read_conditions(cluster.observed)["Stalled"] == ("True", "RolledBack")
    assert sorted(cluster.held) == [OLD]


def test_a_rollback_takes_the_share_first_and_the_version_later() -> None:
    cluster = Cluster.at_first_step()
    cluster.make_pass()
    cluster.annotate("rollback", **{"from": V2, "to": V1})
    cluster.make_pass()
    assert cluster.shares == {OLD: 100}
    assert NEW in cluster.held, "requests are on their way"
    cluster.make_pass()
    assert NEW in cluster.held
    cluster.make_pass(16)
    assert sorted(cluster.held) == [OLD]


def test_a_pod_that_starts_does_not_take_the_share_away() -> None:
    cluster = Cluster.at_first_step()
    cluster.observed = replace(cluster.observed, pods=(*cluster.observed.pods, pod("web-d", ready=False)))
    plan = make_plan(cluster.observed, cluster.now, ALLOWED)
    assert plan.members[0].rewrite is None
    cluster.observed = replace(cluster.observed, pods=(*cluster.observed.pods[:3], pod("web-d", ready=True)))
    plan = make_plan(cluster.observed, cluster.now, ALLOWED)
    assert plan.members[0].rewrite is not None, "it takes requests that it cannot answer"
    targets = plan.members[0].rewrite["spec"]["rules"][0]["targets"]
    assert targets == [{"modelRewrite": OLD, "weight": 100}]


def test_what_somebody_changes_in_the_rewrite_is_put_right_and_the_pause_begins_anew() -> None:
    cluster = Cluster.at_first_step()
    cluster.make_pass()
    reached = cluster.status["canary"]["reachedAt"]
    edited = copy.deepcopy(cluster.observed.gateways["bot"].rewrites[0])
    edited["spec"]["rules"][0]["targets"] = [{"modelRewrite": NEW, "weight": 100}]
    cluster.observed = replace(cluster.observed, gateways={"bot": Gateway((edited,), POOL)})
    cluster.make_pass(5)
    assert cluster.shares == {OLD: 95, NEW: 5}
    cluster.make_pass()
    assert cluster.status["canary"]["reachedAt"] > reached


def test_a_suspended_one_keeps_its_shares_and_its_versions() -> None:
    cluster = Cluster.at_first_step()
    (resource,) = cluster.observed.resources
    resource["spec"]["suspend"] = True
    held = cluster.held
    cluster.settle(100)
    assert (cluster.shares, cluster.held) == ({OLD: 95, NEW: 5}, held)


def test_no_pod_gets_a_label_of_a_track() -> None:
    cluster = Cluster()
    cluster.settle()
    assert not any(cluster.plan.pod_labels.values())


def older(**fields: Any) -> Object:
    """Return an InferenceModelRewrite that is older than ours."""
    match = {"model": {"type": "Exact", "value": fields.get("model", BOT)}}
    return {
        "metadata": {"name": fields.get("name", "older"), "creationTimestamp": "2020-01-01T00:00:00Z"},
        "spec": {
            "poolRef": {"name": fields.get("pool", "pool")},
            "rules": [{"matches": [match], "targets": [{"modelRewrite": "x", "weight": 1}]}],
        },
    }


@pytest.mark.parametrize(
    ("gateway", "status", "reason", "text"),
    [
        (Gateway(problem="the cluster has none"), "False", "GatewayNotReady", "Install the CRDs"),
        (Gateway(), "Unknown", "GatewayNotReady", "there is no InferencePool 'pool'"),
        (
            Gateway((), {"spec": {"selector": {"matchLabels": {"app": "other"}}}}),
            "False",
            "GatewayNotReady",
            "chooses pods with app=other",
        ),
        (Gateway((), POOL, ("other-1", "other-2")), "False", "GatewayNotReady", "does not have (other-1, other-2)"),
        (Gateway((older(),), POOL), "False", "RewriteTaken", "the gateway follows the oldest one"),
        (Gateway((older(name="bot"),), POOL), "False", "RewriteTaken", "somebody else has"),
        (Gateway((older(model="another"), older(pool="another")), POOL), "True", "Accepted", "can serve"),
    ],
)
def test_a_gateway_that_would_not_follow_is_found_before_any_pod_changes(
    gateway: Gateway, status: str, reason: str, text: str
) -> None:
    cluster = Cluster()
    cluster.observed = replace(cluster.observed, gateways={"bot": gateway})
    cluster.make_pass()
    assert read_conditions(cluster.observed)["Accepted"] == (status, reason)
    assert text in cluster.read_message("Accepted")
    assert (cluster.observed.config_map is None) == (status != "True")


def test_an_older_rewrite_that_comes_later_in_the_list_is_a_rival_though_ours_is_there() -> None:
    cluster = Cluster()
    cluster.settle()
    gateway = cluster.observed.gateways["bot"]
    younger = older()
    younger["metadata"]["creationTimestamp"] = "2030-01-01T00:00:00Z"
    cluster.observed = replace(
        cluster.observed, gateways={"bot": replace(gateway, rewrites=(*gateway.rewrites, younger))}
    )
    cluster.make_pass()
    assert read_conditions(cluster.observed)["Accepted"][0] == "True"
    cluster.observed = replace(
        cluster.observed, gateways={"bot": replace(gateway, rewrites=(*gateway.rewrites, older()))}
    )
    cluster.make_pass()
    assert read_conditions(cluster.observed)["Accepted"] == ("False", "RewriteTaken")
    assert cluster.held == {OLD: None}, "what serves goes on"


def test_nothing_is_sent_to_pods_before_all_of_them_have_the_agent() -> None:
    cluster = Cluster()
    assert cluster.observed.workload is not None
    cluster.observed.workload["status"]["updatedReplicas"] = 2
    cluster.settle()
    assert cluster.shares == {}
    cluster.observed.workload["status"]["updatedReplicas"] = 3
    cluster.settle(4)
    assert cluster.shares == {OLD: 100}


def test_the_administrator_must_allow_it() -> None:
    cluster = Cluster()
    plan = make_plan(cluster.observed, NOW, SETTINGS)
    obstacle = plan.members[0].obstacle
    assert obstacle is not None
    assert "chart value traffic.inferenceModelRewrites.enabled" in obstacle.message


def _quick() -> Object:
    return {
        "steps": [{"trafficPercent": 10, "pauseSeconds": 1}],
        "traffic": {"inferenceModelRewrite": {"poolRef": {"name": "pool"}}},
    }
