"""status.history: what happened to each version, when, why and with which evidence."""

from dataclasses import replace
from datetime import timedelta

import pytest

from finetune_api.adapterdeployment import AdapterVersion, HistoryEntry
from finetune_api.limits import HISTORY_MESSAGE_CHARACTERS
from finetune_api.reasons import Reason
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.revision_history import record_deployed, record_failed, trim
from finetune_operator.reconcile.adapterdeployment.model import Observed
from tests.adapterdeployment.groups import (
    NOW,
    V1,
    V2,
    V3,
    adapter,
    add_reports,
    build_source,
    edit,
    group,
    make_pass,
    uri,
)

LATER = NOW + timedelta(hours=1)
T0, T1 = "2026-01-02T03:04:05Z", "2026-01-02T04:04:05Z"
DEPLOYED = add_reports(make_pass(group(adapter())), "abc", V1, V1, proof="98% of the trained effect is there")
SERVED = make_pass(DEPLOYED)
REFUSAL = {"state": "Refused", "reason": Reason.PROOF_FAILED, "message": "only 3% of its effect is there"}


def history(observed: Observed) -> list[Object]:
    entries: list[Object] = observed.resources[0]["status"].get("history", [])
    return entries


def roll_out(observed: Observed, digest: str) -> Observed:
    """Let every pod take a version, an hour later."""
    observed = make_pass(edit(observed, adapter=build_source(digest)), LATER)
    for pod in "abc":
        observed = make_pass(add_reports(observed, pod, digest, digest), LATER)
    return observed


def test_nothing_is_recorded_before_every_pod_serves() -> None:
    assert history(make_pass(group(adapter()))) == []


def test_a_version_that_every_pod_serves_is_recorded_with_the_proofs_of_its_pods() -> None:
    (entry,) = history(SERVED)
    assert entry == {
        "uri": uri(V1),
        "digest": V1,
        "since": T0,
        "event": "Deployed",
        "evidence": [f"pod web-{pod}: 98% of the trained effect is there" for pod in "abc"],
    }


def test_a_second_pass_changes_nothing() -> None:
    assert history(make_pass(SERVED, LATER)) == history(SERVED)


def test_the_version_before_ends_when_every_pod_serves_the_next() -> None:
    new, old = history(roll_out(SERVED, V2))
    assert (new["digest"], new["since"], new.get("until")) == (V2, T1, None)
    assert (old["digest"], old["since"], old["until"]) == (V1, T0, T1)


def test_a_version_that_comes_again_has_an_entry_of_its_own() -> None:
    entries = history(roll_out(roll_out(SERVED, V2), V1))
    assert [(entry["digest"], "until" in entry) for entry in entries] == [(V1, False), (V2, True), (V1, True)]


def test_a_first_version_that_fails_is_recorded_once_and_with_its_reason() -> None:
    refused = make_pass(add_reports(make_pass(group(adapter())), "b", V1, None, **REFUSAL), LATER)
    (entry,) = history(make_pass(refused, LATER + timedelta(hours=1)))
    assert (entry["event"], entry["digest"], entry["reason"], entry["since"]) == ("Failed", V1, "ProofFailed", T1)
    assert entry["message"] == "pod web-b: only 3% of its effect is there"


def test_a_pod_that_refuses_later_what_every_pod_served_is_no_failed_rollout() -> None:
    assert history(make_pass(add_reports(SERVED, "b", V1, None, **REFUSAL))) == history(SERVED)


def test_an_older_operators_status_gets_its_entry() -> None:
    (resource,) = SERVED.resources
    status = {name: value for name, value in resource["status"].items() if name != "history"}
    older = replace(SERVED, resources=({**resource, "status": status},))
    assert [(entry["digest"], entry["since"]) for entry in history(make_pass(older, LATER))] == [(V1, T0)]


def test_the_limit_of_the_spec_keeps_the_served_version_and_the_newest_others() -> None:
    observed = roll_out(roll_out(roll_out(SERVED, V2), V3), V1)
    assert [entry["digest"] for entry in history(observed)] == [V1, V3, V2, V1]
    limited = make_pass(edit(observed, revisionHistoryLimit=1))
    assert [entry["digest"] for entry in history(limited)] == [V1, V3]
    assert [entry["digest"] for entry in history(make_pass(edit(limited, revisionHistoryLimit=0)))] == [V1]


def entry(digest: str, event: str, until: str | None = None) -> HistoryEntry:
    return HistoryEntry.model_validate(
        {"uri": uri(digest), "digest": digest, "event": event, "since": T0, **({"until": until} if until else {})}
    )


@pytest.mark.parametrize(
    ("entries", "limit", "kept"),
    [
        ([], 3, []),
        ([entry(V2, "Failed"), entry(V1, "Deployed")], 0, [V1]),
        ([entry(V2, "Failed")] * 3 + [entry(V1, "Deployed")], 2, [V2, V2, V1]),
        ([entry(V2, "Deployed", T1), entry(V1, "Deployed", T1)], 1, [V2]),
    ],
)
def test_trim(entries: list[HistoryEntry], limit: int, kept: list[str]) -> None:
    assert [item.digest for item in trim(entries, limit)] == kept


def test_long_messages_and_many_proofs_are_cut() -> None:
    version = AdapterVersion(uri=uri(V1), digest=V1)
    (failed,) = record_failed([], version, "Failed", T0, "ProofFailed", "x" * 5000)
    assert len(failed.message or "") == HISTORY_MESSAGE_CHARACTERS
    (deployed,) = record_deployed([], version, T0, ["y" * 5000] * 50)
    assert [len(text) for text in deployed.evidence] == [HISTORY_MESSAGE_CHARACTERS] * 3
