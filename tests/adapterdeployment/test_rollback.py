"""A roll-out that fails goes back to the last good version, and a person can ask for an older one."""

import json
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from finetune_api.reasons import Reason
from finetune_operator.kube.kinds import Object
from finetune_operator.reconcile.adapterdeployment.model import Observed
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
    add_reports,
    build_source,
    deployment,
    edit,
    group,
    injected,
    job,
    make_pass,
    read_conditions,
    read_entry,
    uri,
)

ANNOTATION = "finetune-operator.io/rollback"
STALLED = {"Ready": ("False", "RolledBack"), "Stalled": ("True", "RolledBack")}
BAD = {"state": "Refused", "reason": Reason.PROOF_FAILED, "message": "only 3% of its effect is there"}
SERVED = make_pass(add_reports(make_pass(group(adapter())), "abc", V1, V1))
BEGUN = make_pass(edit(SERVED, adapter=build_source(V2)))
"""The first of three pods is told the second version."""
REFUSED = add_reports(BEGUN, "a", V2, V1, **BAD)
ROLLED_BACK = make_pass(make_pass(REFUSED))


def read_status(observed: Observed) -> Object:
    status: Object = observed.resources[0]["status"]
    return status


def read_message(observed: Observed) -> str:
    return next(str(item["message"]) for item in read_status(observed)["conditions"] if item["type"] == "Ready")


def annotate(observed: Observed, request: Object | str | None) -> Observed:
    """Write the annotation, or remove it."""
    (resource,) = observed.resources
    text = request if isinstance(request, str) or request is None else json.dumps(request)
    meta = {**resource["metadata"], "annotations": {} if text is None else {ANNOTATION: text}}
    return replace(observed, resources=({**resource, "metadata": meta},))


def roll_out(observed: Observed, digest: str, now: datetime = NOW) -> Observed:
    """Let every pod take the version that is asked for."""
    for pod in "abc":
        observed = make_pass(add_reports(make_pass(observed, now), pod, digest, digest), now)
    return make_pass(observed, now)


def settle(observed: Observed, digest: str) -> Observed:
    """Let the pods do what the ConfigMap tells them, until it changes no more."""
    for _ in range(9):
        version, previous, pods = read_entry(observed)
        for pod in "abc":
            target = version if pods is None or f"web-{pod}" in pods else previous
            observed = add_reports(observed, pod, str(target), str(target))
        observed = make_pass(observed)
    assert read_entry(observed) == (digest, None, None)
    return observed


def test_a_bad_adapter_is_rolled_back_by_status_first_and_then_on_the_pods() -> None:
    decided = make_pass(REFUSED)
    assert read_entry(decided) == (V2, V1, ["web-a"]), "the pods follow the status, so that no restart forgets why"
    assert read_status(decided)["desired"]["digest"] == V1
    assert read_status(decided)["rollback"] == {
        "from": {"uri": uri(V2), "digest": V2},
        "at": "2026-01-02T03:04:05Z",
        "reason": "ProofFailed",
        "message": "pod web-a: only 3% of its effect is there",
    }
    assert read_entry(make_pass(decided)) == (V1, None, None)


def test_the_pass_after_it_comes_at_once() -> None:
    (update,) = build_updates(REFUSED, make_plan(REFUSED, NOW, SETTINGS), None, NOW)
    assert update.requeue_after == 0
    assert [(event.type, event.reason, event.action) for event in update.events] == [
        ("Warning", "RolledBack", "RollBack")
    ]


def test_a_rollback_is_failed_for_gitops_until_the_spec_changes() -> None:
    observed = settle(ROLLED_BACK, V1)
    conditions = read_conditions(observed)
    assert {name: conditions[name] for name in STALLED} == STALLED
    assert "Reconciling" not in conditions
    assert read_status(observed)["observedGeneration"] == 2
    assert "3 of 3 pods serve sha256:111111111111" in read_message(observed)
    assert "--undo" in read_message(observed)
    assert read_status(observed)["active"]["digest"] == V1


def test_a_second_pass_changes_nothing() -> None:
    observed = settle(ROLLED_BACK, V1)
    assert make_pass(observed, NOW + timedelta(days=1)) == observed


def test_the_history_has_it_once_and_the_version_that_is_served_again_never_ended() -> None:
    new, old = read_status(settle(ROLLED_BACK, V1))["history"]
    assert (new["event"], new["digest"], new["reason"]) == ("RolledBack", V2, "ProofFailed")
    assert (old["event"], old["digest"], "until" in old) == ("Deployed", V1, False)


def test_a_restarted_operator_that_has_no_reports_yet_changes_nothing() -> None:
    observed = settle(ROLLED_BACK, V1)
    assert make_pass(replace(observed, agent_reports={})) == replace(observed, agent_reports={})


@pytest.mark.parametrize(
    "change",
    [{"adapter": build_source(V3)}, {"adapter": build_source(V1)}, {"verification": {"tolerance": 0.5}}],
    ids=["another version", "the good version", "a higher tolerance"],
)
def test_an_edit_of_the_spec_ends_it(change: Object) -> None:
    observed = make_pass(edit(settle(ROLLED_BACK, V1), **change))
    assert "rollback" not in read_status(observed)
    assert read_entry(observed)[0] == change.get("adapter", {}).get("digest", V2)
    assert "Stalled" not in read_conditions(observed)


def test_a_person_may_let_it_be_tried_again_once() -> None:
    observed = settle(ROLLED_BACK, V1)
    undone = make_pass(annotate(observed, {"undone": read_status(observed)["rollback"]["at"]}))
    assert read_entry(undone) == (V2, V1, ["web-a"])
    again = add_reports(undone, "a", V2, V1, **BAD)
    later = NOW + timedelta(minutes=1)
    again = make_pass(make_pass(again, later), later)
    assert read_entry(again)[0] == V1, "the same annotation does not undo the next rollback"


def test_without_automatic_rollback_each_pod_keeps_what_it_serves() -> None:
    observed = make_pass(edit(SERVED, adapter=build_source(V2), rollback={"automatic": False}))
    observed = make_pass(make_pass(add_reports(observed, "a", V2, V1, **BAD)))
    assert read_entry(observed) == (V2, V1, ["web-a"])
    assert read_conditions(observed)["Stalled"] == ("True", "ProofFailed")
    assert [entry["event"] for entry in read_status(observed)["history"]] == ["Failed", "Deployed"]


def test_a_first_version_has_nothing_to_go_back_to() -> None:
    observed = make_pass(add_reports(make_pass(group(adapter())), "a", V1, None, **BAD))
    assert "rollback" not in read_status(observed)
    assert read_conditions(observed)["Stalled"] == ("True", "ProofFailed")


@pytest.mark.parametrize("reason", [Reason.RESTART_REQUIRED, Reason.SERVED_NAME_TAKEN])
def test_a_failure_that_no_other_version_avoids_is_not_rolled_back(reason: Reason) -> None:
    observed = make_pass(add_reports(BEGUN, "a", V2, V1, state="Refused", reason=reason, message="m"))
    assert "rollback" not in read_status(observed)
    assert read_conditions(observed)["Stalled"] == ("True", reason)


@pytest.mark.parametrize("reason", [Reason.DIGEST_MISMATCH, Reason.ENGINE_REFUSED, Reason.BASE_MODEL_MISMATCH])
def test_every_other_refusal_is(reason: Reason) -> None:
    observed = make_pass(add_reports(BEGUN, "a", V2, V1, state="Refused", reason=reason, message="m"))
    assert read_status(observed)["rollback"]["reason"] == reason


def test_a_pod_that_later_refuses_what_every_pod_served_rolls_nothing_back() -> None:
    observed = make_pass(add_reports(roll_out(BEGUN, V2), "a", V2, None, **BAD))
    assert "rollback" not in read_status(observed)
    assert read_conditions(observed)["Stalled"] == ("True", "ProofFailed")


def test_a_suspended_rollout_is_not_rolled_back() -> None:
    observed = make_pass(add_reports(make_pass(edit(BEGUN, suspend=True)), "a", V2, V1, **BAD))
    assert "rollback" not in read_status(observed)
    resumed = make_pass(edit(observed, suspend=None))
    assert read_status(resumed)["rollback"]["from"]["digest"] == V2


def test_a_version_that_was_rolled_back_is_no_goal_of_a_later_rollback() -> None:
    observed = roll_out(SERVED, V1)
    observed = roll_out(make_pass(edit(observed, adapter=build_source(V2))), V2)
    observed = settle(make_pass(annotate(observed, {"from": V2, "to": V1})), V1)
    observed = make_pass(edit(observed, adapter=build_source(V3)))
    observed = make_pass(make_pass(add_reports(observed, "a", V3, V1, **BAD)))
    assert read_entry(observed)[0] == V1


# a person's request

BOTH = roll_out(BEGUN, V2)
REQUEST = {"from": V2, "to": V1}


def test_a_request_moves_the_pods_back_one_after_another_and_keeps_the_spec() -> None:
    observed = make_pass(annotate(BOTH, REQUEST))
    assert read_entry(observed) == (V1, V2, ["web-a"])
    assert read_conditions(observed)["Stalled"] == ("True", "RolledBack")
    observed = settle(observed, V1)
    assert read_status(observed)["rollback"]["reason"] == "RollbackRequested"
    assert read_status(observed)["active"]["digest"] == V1
    assert [(entry["event"], entry["digest"]) for entry in read_status(observed)["history"]] == [
        ("Deployed", V1),
        ("RolledBack", V2),
        ("Deployed", V2),
        ("Deployed", V1),
    ]
    assert make_pass(observed, NOW + timedelta(days=1)) == observed


def test_a_request_holds_whatever_else_is_edited_and_ends_with_the_annotation() -> None:
    observed = settle(make_pass(annotate(BOTH, REQUEST)), V1)
    observed = make_pass(edit(observed, strategy={"maxUnavailable": 2}))
    assert read_entry(observed)[0] == V1
    observed = make_pass(annotate(observed, None))
    assert read_entry(observed) == (V2, V1, ["web-a", "web-b"])
    assert "rollback" not in read_status(observed)


def test_a_request_ends_when_the_spec_asks_for_another_version() -> None:
    observed = make_pass(edit(settle(make_pass(annotate(BOTH, REQUEST)), V1), adapter=build_source(V3)))
    assert read_entry(observed)[0] == V3
    assert "rollback" not in read_status(observed)


def test_a_request_holds_when_its_version_leaves_the_history() -> None:
    observed = make_pass(edit(BOTH, revisionHistoryLimit=1))
    observed = settle(make_pass(annotate(observed, REQUEST)), V1)
    observed = settle(make_pass(edit(observed, revisionHistoryLimit=0)), V1)
    assert read_status(observed)["rollback"]["from"]["digest"] == V2


@pytest.mark.parametrize(
    ("request_text", "message"),
    [
        ("roll it back", "Invalid JSON"),
        ('{"from": "' + V2 + '"}', "from and to belong together: set both, or neither"),
        ('{"from": "' + V2 + '", "to": "1"}', "to: "),
        ('{"from": "' + V2 + '", "to": "' + V3 + '"}', f"status.history has no {V3}"),
    ],
)
def test_a_request_that_cannot_be_followed_is_reported_and_changes_nothing(request_text: str, message: str) -> None:
    observed = make_pass(annotate(BOTH, request_text))
    assert read_entry(observed) == read_entry(BOTH)
    (accepted,) = [item for item in read_status(observed)["conditions"] if item["type"] == "Accepted"]
    assert accepted["status"] == "True"
    assert f"annotation {ANNOTATION} is not followed" in accepted["message"]
    assert message in accepted["message"]


def test_a_rollback_goes_to_the_place_and_the_credentials_of_the_older_version() -> None:
    """Its FineTuneJob is gone; the Secret stayed mounted for it."""
    first = make_pass(group(adapter(digest=None), workload=injected("s3-keys"), finetune_jobs={"job": job()}))
    first = make_pass(add_reports(first, "abc", V1, V1))
    rolling_out = make_pass(replace(edit(first, adapter=build_source(V2)), finetune_jobs={}))
    injection = make_plan(rolling_out, NOW, SETTINGS).injection
    assert injection is not None
    assert injection.pending == "", "no Secret is to be taken out"
    plan = make_plan(make_pass(make_pass(add_reports(rolling_out, "a", V2, V1, **BAD))), NOW, SETTINGS)
    assert plan.state is not None
    (entry,) = plan.state.adapters
    assert (entry.version.digest, entry.endpoint, entry.secret) == (V1, "http://s3:9000", "s3-keys")


def test_the_pods_keep_the_version_to_which_a_rollback_would_go() -> None:
    for observed, expected in ((SERVED, None), (BEGUN, V1), (BOTH, V1), (settle(ROLLED_BACK, V1), None)):
        (entry,) = read_config_map(make_pass(observed).config_map).adapters
        assert (entry.last_good.digest if entry.last_good is not None else None) == expected


def test_a_rollback_outlives_the_job_of_the_version_that_was_rolled_back() -> None:
    second_job = job(uid="j-2", uri=uri(V2), digest=V2)
    named = {"fineTuneJobRef": {"name": "job"}}
    observed = make_pass(replace(edit(SERVED, adapter=named), finetune_jobs={"job": second_job}))
    observed = settle(make_pass(make_pass(add_reports(observed, "a", V2, V1, **BAD))), V1)
    without_job = make_pass(replace(observed, finetune_jobs={}))
    assert read_entry(without_job) == (V1, None, None)
    assert read_conditions(without_job)["Stalled"] == ("True", "RolledBack")


def test_pods_that_start_during_a_rollback_serve_the_older_version() -> None:
    observed = settle(ROLLED_BACK, V1)
    grown = replace(observed, workload=deployment(replicas=4))
    assert read_entry(make_pass(grown)) == (V1, None, None)
