"""When refusals of pods end a roll-out, and when it continues without them."""

import pytest

from finetune_api.messages import AgentAdapter
from finetune_api.reasons import Reason
from finetune_operator.policies.failed_rollout import find_refusal
from tests.adapterdeployment.groups import (
    V1,
    V2,
    adapter,
    add_reports,
    build_source,
    edit,
    group,
    make_pass,
    read_conditions,
    read_entry,
    report,
)


def view(letters: str, reason: Reason = Reason.PROOF_FAILED) -> dict[str, AgentAdapter]:
    """Build pods from one letter each: r refuses the version, s serves it, o serves the older one."""
    reports = {
        "r": report(V2, V1, "Refused", reason, "why").adapters[0],
        "s": report(V2, V2).adapters[0],
        "o": report(V1, V1).adapters[0],
    }
    return {f"web-{number}": reports[letter] for number, letter in enumerate(letters)}


@pytest.mark.parametrize(
    ("pods", "budget", "reason", "failed", "is_caused_by_version"),
    [
        ("ooo", 1, Reason.PROOF_FAILED, False, False),
        ("roo", 1, Reason.PROOF_FAILED, True, True),
        ("roo", 2, Reason.PROOF_FAILED, False, False),
        ("rro", 2, Reason.PROOF_FAILED, True, True),
        ("rss", 2, Reason.PROOF_FAILED, True, False),
        ("rso", 2, Reason.PROOF_FAILED, False, False),
        ("roo", 1, Reason.RESTART_REQUIRED, True, False),
    ],
)
def test_refusals(pods: str, budget: int, reason: Reason, failed: bool, is_caused_by_version: bool) -> None:
    failure = find_refusal(view(pods, reason), V2, budget)
    assert (failure is not None) is failed
    if failure is not None:
        assert (failure.reason, failure.is_caused_by_version) == (reason, is_caused_by_version)
        assert "pod web-0: why" in failure.message


def test_an_adapters_fault_is_named_before_the_need_of_a_restart() -> None:
    pods = {**view("o"), **view("rr", Reason.RESTART_REQUIRED)}
    pods["web-1"] = view("r")["web-0"]
    failure = find_refusal(pods, V2, 1)
    assert failure is not None
    assert (failure.reason, failure.is_caused_by_version) == (Reason.PROOF_FAILED, True)


def test_a_pod_within_the_budget_holds_up_no_other_and_is_reported_in_the_end() -> None:
    served = make_pass(add_reports(make_pass(group(adapter())), "abc", V1, V1))
    observed = make_pass(edit(served, adapter=build_source(V2), strategy={"maxUnavailable": 2}))
    assert read_entry(observed)[2] == ["web-a", "web-b"]
    refusal = {"state": "Refused", "reason": Reason.RANK_TOO_HIGH, "message": "an engine with another maximum"}
    observed = make_pass(add_reports(observed, "a", V2, V1, **refusal))
    assert read_conditions(observed)["Reconciling"] == ("True", "RankTooHigh")
    observed = make_pass(add_reports(observed, "b", V2, V2))
    assert read_entry(observed)[2] == ["web-a", "web-b", "web-c"]
    observed = make_pass(make_pass(add_reports(observed, "c", V2, V2)))
    assert read_conditions(observed)["Stalled"] == ("True", "RankTooHigh")
    assert read_entry(observed) == (V2, V1, ["web-a", "web-b", "web-c"])
    status = observed.resources[0]["status"]
    assert "2 pods serve it" in str(status["conditions"])
    assert "rollback" not in status
    assert [entry["event"] for entry in status["history"]] == ["Deployed"]
