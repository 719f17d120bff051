"""strategy.canary: a few pods serve a new version first, step by step."""

import json
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from finetune_api.messages import AgentEngine
from finetune_api.reasons import Reason
from finetune_operator.kube.kinds import Object
from finetune_operator.reconcile.adapterdeployment.model import Observed
from finetune_operator.reconcile.adapterdeployment.plan import make_plan
from finetune_operator.reconcile.adapterdeployment.status import build_updates
from tests.adapterdeployment.groups import (
    NOW,
    SETTINGS,
    V1,
    V2,
    V3,
    adapter,
    add_reports,
    build_source,
    deployment,
    edit,
    group,
    make_pass,
    pod,
    read_conditions,
    read_entry,
)

ANNOTATION = "finetune-operator.io/promotion"
STEPS = [{"pods": 1}, {"percent": 50, "pauseSeconds": 60}]
SERVED = make_pass(add_reports(make_pass(group(adapter(strategy={"canary": {"steps": STEPS}}))), "abc", V1, V1))
BEGUN = make_pass(edit(SERVED, adapter=build_source(V2)))
"""The first of three pods is told the second version."""
WAITING = make_pass(add_reports(BEGUN, "a", V2, V2))
"""It serves it, and the first step waits for a person."""


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def read_status(observed: Observed) -> Object:
    status: Object = observed.resources[0]["status"]
    return status


def read_message(observed: Observed, kind: str = "Ready") -> str:
    return next(str(item["message"]) for item in read_status(observed)["conditions"] if item["type"] == kind)


def request(observed: Observed, **content: object) -> Observed:
    """Write a person's request as an annotation."""
    (resource,) = observed.resources
    meta = {**resource["metadata"], "annotations": {ANNOTATION: json.dumps(content)}}
    return replace(observed, resources=({**resource, "metadata": meta},))


def resume(observed: Observed, step: int | None = None, now: datetime = NOW) -> Observed:
    """Let the canary go on, and make two passes: the pods follow the status."""
    started_at = read_status(observed)["canary"]["startedAt"]
    content = {"startedAt": started_at} | ({"step": step} if step else {})
    return make_pass(make_pass(request(observed, **content), now), now)


def test_the_first_version_has_no_canary() -> None:
    assert read_entry(SERVED) == (V1, None, None)
    assert "canary" not in read_status(SERVED)


def test_a_new_version_begins_on_the_pods_of_the_first_step() -> None:
    assert read_entry(BEGUN) == (V2, V1, ["web-a"])
    assert read_status(BEGUN)["canary"] == {
        "digest": V2,
        "startedAt": "2026-01-02T03:04:05Z",
        "passedSteps": 0,
        "pods": 1,
        "evidence": [],
    }


def test_a_step_without_a_pause_waits_for_a_person_for_ever() -> None:
    observed = make_pass(WAITING, after(1e6))
    assert read_entry(observed) == (V2, V1, ["web-a"])
    conditions = read_conditions(observed)
    assert (conditions["Ready"], conditions["Suspended"]) == (("False", "CanaryPaused"), ("True", "CanaryPaused"))
    assert not conditions.keys() & {"Reconciling", "Stalled"}
    for words in ("step 1 of 2 (1 pod)", "finetune resume bot", "finetune abort bot"):
        assert words in read_message(observed)


def test_a_person_lets_it_go_on_and_the_pods_follow_the_status() -> None:
    observed = request(WAITING, startedAt=read_status(WAITING)["canary"]["startedAt"], step=1)
    (update,) = build_updates(observed, make_plan(observed, NOW, SETTINGS), None, NOW)
    assert update.requeue_after == 0
    decided = make_pass(observed)
    assert read_entry(decided) == (V2, V1, ["web-a"])
    assert "Suspended" not in read_conditions(decided)
    assert read_entry(make_pass(decided)) == (V2, V1, ["web-a", "web-b"]), "half of three pods are two"


def test_a_step_with_a_pause_goes_on_by_itself_and_then_all_pods_take_it() -> None:
    second = make_pass(add_reports(resume(WAITING, 1), "b", V2, V2), after(10))
    assert read_conditions(second)["Ready"] == ("Unknown", "RollingOut")
    assert "the next step begins at 2026-01-02T03:05:15Z" in read_message(second)
    (update,) = build_updates(second, make_plan(second, after(40), SETTINGS), None, after(40))
    assert update.requeue_after == 30
    assert make_pass(second, after(69)) == second, "a pass that changes nothing writes nothing"
    third = make_pass(make_pass(second, after(70)), after(70))
    assert read_entry(third) == (V2, V1, ["web-a", "web-b", "web-c"])
    complete = make_pass(add_reports(third, "c", V2, V2, proof="98%"), after(80))
    assert read_conditions(complete)["Ready"] == ("True", "Serving")
    assert read_entry(complete) == (V2, None, None)
    assert "canary" not in read_status(complete)
    assert read_status(complete)["history"][0]["evidence"] == [
        "step 1 of 2: a person let it go on",
        "step 2 of 2: 2 pods served it for 60 s",
        "pod web-c: 98%",
    ]


def test_a_person_promotes_it_past_all_steps_also_before_the_first_is_reached() -> None:
    assert read_entry(resume(BEGUN))[2] == ["web-a"], "one after another, as without a canary"
    assert read_entry(make_pass(add_reports(resume(BEGUN), "a", V2, V2)))[2] == ["web-a", "web-b"]


@pytest.mark.parametrize(
    "content",
    [{"startedAt": "2025-01-01T00:00:00Z", "step": 1}, {"startedAt": "2026-01-02T03:04:05Z", "step": 2}],
    ids=["another canary", "another step"],
)
def test_a_request_for_something_else_changes_nothing(content: Object) -> None:
    observed = make_pass(make_pass(request(WAITING, **content)))
    assert (read_entry(observed), read_status(observed)) == (read_entry(WAITING), read_status(WAITING))


def test_a_request_that_cannot_be_read_is_told() -> None:
    observed = make_pass(request(WAITING, step=1))
    assert f"the annotation {ANNOTATION} is not followed: startedAt: Field required" in read_message(
        observed, "Accepted"
    )
    assert read_entry(observed) == read_entry(WAITING)


def test_a_step_is_not_resumed_before_its_pods_serve_the_version() -> None:
    assert read_entry(resume(BEGUN, 1)) == read_entry(BEGUN)


def test_a_pod_of_the_canary_that_starts_anew_serves_the_new_version_and_the_pause_begins_anew() -> None:
    second = make_pass(add_reports(resume(WAITING, 1), "b", V2, V2), after(10))
    pods = (pod("web-a"), pod("web-c"), pod("web-d", ready=False))
    reports = {name: pod_report for name, pod_report in second.agent_reports.items() if name != "web-b"}
    replaced = make_pass(replace(second, pods=pods, agent_reports=reports), after(30))
    assert read_entry(replaced) == (V2, V1, ["web-a", "web-d"])
    back = make_pass(add_reports(replace(replaced, pods=(*pods[:2], pod("web-d"))), "d", V2, V2), after(40))
    assert "the next step begins at 2026-01-02T03:05:45Z" in read_message(back)


def test_a_pod_that_is_added_serves_the_version_before() -> None:
    grown = replace(WAITING, workload=deployment(4), pods=(*WAITING.pods, pod("web-d", ready=False)))
    assert read_entry(make_pass(grown)) == (V2, V1, ["web-a"])


def test_a_percentage_grows_with_the_deployment() -> None:
    second = make_pass(add_reports(resume(WAITING, 1), "b", V2, V2))
    pods = (*second.pods, pod("web-d", ready=False), pod("web-e", ready=False))
    grown = make_pass(replace(second, workload=deployment(5), pods=pods))
    assert read_entry(grown) == (V2, V1, ["web-a", "web-b", "web-d"]), "three of five"


def test_a_step_of_all_pods_keeps_the_version_before_until_it_is_over() -> None:
    steps = [{"percent": 100}]
    observed = make_pass(
        edit(SERVED, adapter=build_source(V2), strategy={"maxUnavailable": 2, "canary": {"steps": steps}})
    )
    observed = make_pass(add_reports(make_pass(add_reports(observed, "ab", V2, V2)), "c", V2, V2))
    assert read_entry(observed) == (V2, V1, ["web-a", "web-b", "web-c"])
    assert read_status(observed)["active"]["digest"] == V1
    assert read_conditions(observed)["Ready"] == ("False", "CanaryPaused")
    assert read_status(resume(observed, 1))["active"]["digest"] == V2


@pytest.mark.parametrize("replicas", [0, 1])
def test_a_step_has_at_least_one_pod(replicas: int) -> None:
    small = replace(edit(SERVED, adapter=build_source(V2)), workload=deployment(replicas), pods=SERVED.pods[:replicas])
    observed = make_pass(make_pass(small))
    assert read_status(observed)["canary"]["passedSteps"] == 0
    assert read_status(observed)["canary"]["pods"] == 1


def test_waiting_is_no_lack_of_progress_and_the_next_step_has_the_full_time() -> None:
    observed = make_pass(WAITING, after(9999))
    assert "progressedAt" not in read_status(observed)
    observed = resume(observed, 1, after(9999))
    assert "Stalled" not in read_conditions(make_pass(observed, after(9999 + 599)))
    assert read_conditions(make_pass(observed, after(9999 + 600)))["Stalled"] == ("True", "RolledBack")


BAD = {"state": "Refused", "reason": Reason.PROOF_FAILED, "message": "only 3% of its effect is there"}


def test_a_refusal_on_all_pods_of_a_step_rolls_back_though_more_may_be_unavailable() -> None:
    strategy = {"maxUnavailable": 2, "canary": {"steps": STEPS}}
    observed = make_pass(edit(SERVED, adapter=build_source(V2), strategy=strategy))
    observed = make_pass(make_pass(add_reports(observed, "a", V2, V1, **BAD)))
    assert read_entry(observed) == (V1, None, None)
    assert read_status(observed)["rollback"]["reason"] == "ProofFailed"


def test_a_rollback_has_no_canary_and_keeps_the_evidence_of_the_steps_before() -> None:
    second = make_pass(add_reports(resume(WAITING, 1), "b", V2, V1, **BAD))
    observed = make_pass(make_pass(second))
    assert "canary" not in read_status(observed)
    assert read_entry(observed)[0] == V1
    new = read_status(observed)["history"][0]
    assert (new["event"], new["evidence"]) == ("RolledBack", ["step 1 of 2: a person let it go on"])


def test_a_rollback_on_request_ends_it_at_once() -> None:
    (resource,) = WAITING.resources
    annotations = {"finetune-operator.io/rollback": json.dumps({"from": V2, "to": V1})}
    aborted = replace(
        WAITING, resources=({**resource, "metadata": {**resource["metadata"], "annotations": annotations}},)
    )
    observed = make_pass(aborted)
    assert read_entry(observed) == (V1, V2, ["web-a", "web-b", "web-c"])
    assert "canary" not in read_status(observed)


def test_a_request_of_an_earlier_try_does_not_count_for_the_next() -> None:
    observed = make_pass(make_pass(add_reports(resume(WAITING, 1), "b", V2, V1, **BAD), after(5)), after(5))
    observed = make_pass(add_reports(observed, "ab", V1, V1), after(6))
    again = make_pass(edit(observed, rollback={"automatic": True}), after(7))
    again = make_pass(make_pass(add_reports(again, "a", V2, V2), after(8)), after(9))
    assert read_entry(again) == (V2, V1, ["web-a"])
    assert read_conditions(again)["Ready"] == ("False", "CanaryPaused")


def test_another_version_begins_at_the_first_step() -> None:
    strategy = {"maxUnavailable": 2, "canary": {"steps": STEPS}}
    observed = make_pass(edit(resume(WAITING, 1), adapter=build_source(V3), strategy=strategy))
    assert read_status(observed)["canary"]["digest"] == V3
    assert read_status(observed)["canary"]["passedSteps"] == 0
    assert len(read_entry(observed)[2] or []) == 1


def test_suspend_holds_it_also_against_a_request() -> None:
    suspended = make_pass(edit(WAITING, suspend=True))
    assert read_entry(resume(suspended, 1)) == read_entry(WAITING)
    assert read_status(resume(suspended, 1))["canary"]["passedSteps"] == 0
    assert read_entry(make_pass(make_pass(edit(resume(suspended, 1), suspend=None))))[2] == ["web-a", "web-b"]


def test_the_steps_taken_out_of_the_spec_end_it() -> None:
    assert read_entry(make_pass(edit(WAITING, strategy=None)))[2] == ["web-a", "web-b"]


def test_a_lost_config_map_gives_no_further_pod_the_version() -> None:
    assert read_entry(make_pass(replace(WAITING, config_map=None))) == (V2, V1, ["web-a"])


def test_a_lost_status_begins_the_first_step_again_on_the_same_pods() -> None:
    (resource,) = WAITING.resources
    lost = replace(WAITING, resources=({key: value for key, value in resource.items() if key != "status"},))
    observed = make_pass(lost)
    assert read_entry(observed) == (V2, V1, ["web-a"])
    assert read_status(observed)["canary"]["passedSteps"] == 0


def test_a_restarted_operator_that_has_no_reports_yet_changes_nothing() -> None:
    assert make_pass(replace(WAITING, agent_reports={})) == replace(WAITING, agent_reports={})


def test_an_engine_that_needs_a_restart_takes_it_on_the_pod_in_place_of_the_one_that_refuses() -> None:
    engine = AgentEngine(version="0.29.0", moves_by_restart=True)
    refusal = {"state": "Refused", "reason": Reason.RESTART_REQUIRED, "message": "restart it"}
    reported = make_pass(add_reports(BEGUN, "a", V2, V1, **refusal))
    reports = {
        name: pod_report.model_copy(update={"engine": engine}) for name, pod_report in reported.agent_reports.items()
    }
    refused = make_pass(replace(reported, agent_reports=reports))
    assert read_entry(refused) == (V2, V1, ["web-a"])
    assert read_conditions(refused)["Stalled"] == ("True", "RestartRequired")
    other_reports = {name: pod_report for name, pod_report in reports.items() if name != "web-a"}
    pods = (*refused.pods[1:], pod("web-d", ready=False))
    deleted = make_pass(replace(refused, pods=pods, agent_reports=other_reports))
    assert read_entry(deleted) == (V2, V1, ["web-d"])
    back = make_pass(add_reports(replace(deleted, pods=(*pods[:2], pod("web-d"))), "d", V2, V2))
    assert read_conditions(back)["Ready"] == ("False", "CanaryPaused")


# the labels for two Services

STABLE, CANARY, VERSION = (f"bot.finetune-operator.io/{name}" for name in ("stable", "canary", "version"))


def label(observed: Observed) -> Observed:
    """Write the labels of the plan onto the pods."""
    labels = make_plan(observed, NOW, SETTINGS).pod_labels
    pods = []
    for item in observed.pods:
        meta = item["metadata"]
        after = {**meta.get("labels", {}), **labels.get(meta["name"], {})}
        remaining = {key: value for key, value in after.items() if value is not None}
        pods.append({**item, "metadata": {**meta, "labels": remaining}})
    return replace(observed, pods=tuple(pods))


def read_tracks(observed: Observed) -> list[str]:
    """Read from the labels the Services of each pod, and its version: ``s`` stable, ``c`` canary."""
    rows = []
    for item in label(observed).pods:
        labels = item["metadata"]["labels"]
        tracks = "s" * (labels.get(STABLE) == "true") + "c" * (labels.get(CANARY) == "true")
        rows.append(f"{tracks} {labels.get(VERSION, '')[:1]}")
    return rows


def test_the_labels_split_the_pods_while_a_canary_goes_on_and_both_services_always_have_pods() -> None:
    assert read_tracks(SERVED) == ["sc 1", "sc 1", "sc 1"]
    assert read_tracks(BEGUN) == ["c 1", "s 1", "s 1"], "it leaves the stable Service before it changes"
    assert read_tracks(label(WAITING)) == ["c 2", "s 1", "s 1"]
    assert read_tracks(resume(WAITING)) == ["sc 2", "sc 1", "sc 1"], "after the last step the version is accepted"
    rolling_back = make_pass(make_pass(add_reports(resume(WAITING, 1), "b", V2, V1, **BAD)))
    assert read_tracks(rolling_back) == ["c 2", "s 1", "s 1"]
    assert read_tracks(make_pass(add_reports(rolling_back, "abc", V1, V1))) == ["sc 1", "sc 1", "sc 1"]


def test_a_second_pass_changes_no_label() -> None:
    assert make_plan(label(WAITING), NOW, SETTINGS).pod_labels == {}


def test_the_labels_stay_while_something_stands_against_the_roll_out() -> None:
    labelled = label(WAITING)
    without_container = make_pass(
        edit(labelled, target={**labelled.resources[0]["spec"]["target"], "container": "other"})
    )
    assert read_conditions(without_container)["Accepted"] == ("False", "ContainerNotFound")
    assert read_tracks(without_container) == ["c 2", "s 1", "s 1"]


def test_the_labels_go_with_the_canary_of_the_spec_and_those_of_others_stay() -> None:
    labelled = label(WAITING)
    (first, *_) = labelled.pods
    first["metadata"]["labels"] |= {"app.kubernetes.io/version": "1", "canary": "yes"}
    plain = label(make_pass(edit(labelled, strategy=None)))
    assert [item["metadata"]["labels"] for item in plain.pods] == [
        {"app.kubernetes.io/version": "1", "canary": "yes"},
        {},
        {},
    ]


def test_a_pod_set_that_is_all_canary_has_both_labels() -> None:
    single_pod = replace(edit(SERVED, adapter=build_source(V2)), workload=deployment(1), pods=SERVED.pods[:1])
    assert read_tracks(make_pass(single_pod)) == ["sc 1"]


# played to the end, with the operator killed at each pass


def obey(observed: Observed) -> Observed:
    """Let the agents serve what the ConfigMap tells them."""
    version, previous, pods = read_entry(observed)
    for name in "abc":
        target = version if pods is None or f"web-{name}" in pods else previous
        observed = add_reports(observed, name, str(target), target)
    return observed


def play(killed_at: int | None) -> tuple[list[int], Observed]:
    """Play a canary; return how many pods had the version after each pass. Killed: the pass does not write a status."""
    observed, counts = edit(SERVED, adapter=build_source(V2)), []
    for number in range(16):
        now = after(number * 30)
        written = make_pass(observed, now)
        if number == killed_at:
            written = replace(observed, config_map=written.config_map, agent_reports={})
        observed = obey(written)
        counts.append(sum(report.adapters[0].active_digest == V2 for report in observed.agent_reports.values()))
        canary = read_status(observed).get("canary") or {}
        if canary.get("reachedAt") and not canary["passedSteps"]:
            observed = request(observed, startedAt=canary["startedAt"], step=1)
    return counts, observed


@pytest.mark.parametrize("killed_at", [None, *range(12)])
def test_an_operator_that_is_killed_in_a_pass_skips_no_step_and_loses_none(killed_at: int | None) -> None:
    counts, observed = play(killed_at)
    assert read_conditions(observed)["Ready"] == ("True", "Serving")
    assert read_status(observed)["history"][0]["evidence"] == [
        "step 1 of 2: a person let it go on",
        "step 2 of 2: 2 pods served it for 60 s",
    ]
    assert counts == sorted(counts)
    assert counts.count(1) >= 2, "the first step"
    assert counts.count(2) >= 2, "the second step lasts for 60 s, which are two passes"
