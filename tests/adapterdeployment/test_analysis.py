"""Analyses of a canary's steps: what is asked, how the answer is judged, and what follows."""

import json
from dataclasses import replace
from typing import Any

import pytest

from finetune_api.adapterdeployment import Analysis
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.allowed_urls import is_allowed
from finetune_operator.policies.analysis import AnalysisId, AnalysisRequest, Outcome, Subject, fill
from finetune_operator.policies.analysis_http import build_request, judge
from finetune_operator.reconcile.adapterdeployment.model import Observed, StatusUpdate
from finetune_operator.reconcile.adapterdeployment.plan import make_plan
from finetune_operator.reconcile.adapterdeployment.status import build_updates
from finetune_operator.settings import Settings, SettingsError
from tests.adapterdeployment import groups
from tests.adapterdeployment.groups import (
    NOW,
    V1,
    V2,
    adapter,
    add_reports,
    build_source,
    edit,
    group,
    read_conditions,
    read_entry,
)
from tests.adapterdeployment.test_canary import after, read_message, read_status, request, resume

PROMETHEUS = "http://prometheus.monitoring:9090"
NUMBER = {"prometheus": {"url": PROMETHEUS, "query": 'errors{pod=~"{{ pods }}"}', "max": 0.05, "min": 0}}
HOOK = {"webhook": {"url": "http://hook.team/check"}}

ALLOWED: dict[str, tuple[str, str, bool]] = {
    "the same": (PROMETHEUS, PROMETHEUS, True),
    "a path below it": (f"{PROMETHEUS}/team/a", f"{PROMETHEUS}/team", True),
    "a slash at its end": (f"{PROMETHEUS}/team", f"{PROMETHEUS}/team/", True),
    "the port of the scheme": ("https://a.example/x", "https://a.example:443", True),
    "capitals": ("http://HOOK.team/x", "http://hook.team", True),
    "the own namespace": ("http://hook.team.svc/x", "http://hook.{namespace}.svc", True),
    "another namespace": ("http://hook.other.svc/x", "http://hook.{namespace}.svc", False),
    "another host": ("http://169.254.169.254/latest", PROMETHEUS, False),
    "a host that begins like it": ("http://hook.team.evil.example/x", "http://hook.team", False),
    "a path that begins like it": (f"{PROMETHEUS}/teams", f"{PROMETHEUS}/team", False),
    "a path above it": (f"{PROMETHEUS}/team/../x", f"{PROMETHEUS}/team", False),
    "a path above it, encoded": (f"{PROMETHEUS}/team/%2e%2e/x", f"{PROMETHEUS}/team", False),
    "another port": ("http://prometheus.monitoring:9091", PROMETHEUS, False),
    "a port that is none": ("http://prometheus.monitoring:99999", PROMETHEUS, False),
    "another scheme": ("https://prometheus.monitoring:9090", PROMETHEUS, False),
    "a user before the host": ("http://hook.team@evil.example/x", "http://hook.team", False),
}


@pytest.mark.parametrize(("url", "prefix", "expected"), ALLOWED.values(), ids=ALLOWED.keys())
def test_what_may_be_called(url: str, prefix: str, expected: bool) -> None:
    assert is_allowed(url, ["http://nobody", prefix], "team") is expected
    assert not is_allowed(url, [], "team")


def vector(*values: str) -> bytes:
    result = [{"metric": {"pod": str(number)}, "value": [1.5, value]} for number, value in enumerate(values)]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()


ANSWERS: dict[str, tuple[Object, int, bytes, str, str]] = {
    "within": (NUMBER, 200, vector("0.01"), "Passed", "0.01 is within min 0, max 0.05"),
    "at the bound": (NUMBER, 200, vector("0.05"), "Passed", "0.05"),
    "above": (NUMBER, 200, vector("0.06"), "Failed", "0.06 is above max 0.05"),
    "below": (NUMBER, 200, vector("-1"), "Failed", "-1 is below min 0"),
    "infinite": (NUMBER, 200, vector("+Inf"), "Failed", "inf is above max 0.05"),
    "a scalar": (
        NUMBER,
        200,
        b'{"status":"success","data":{"resultType":"scalar","result":[1,"0.02"]}}',
        "Passed",
        "0.02",
    ),
    "no series": (NUMBER, 200, vector(), "Inconclusive", "0 results: is the metric there?"),
    "two series": (NUMBER, 200, vector("1", "2"), "Inconclusive", "2 results: sum()"),
    "NaN": (NUMBER, 200, vector("NaN"), "Inconclusive", "NaN"),
    "a wrong query": (
        NUMBER,
        400,
        b'{"status":"error","errorType":"bad_data","error":"parse error"}',
        "Inconclusive",
        "400: parse error",
    ),
    "another server": (NUMBER, 200, b"<html>", "Inconclusive", "not as a Prometheus does"),
    "a list": (NUMBER, 200, b"[1]", "Inconclusive", "not as a Prometheus does"),
    "a redirect of Prometheus": (NUMBER, 302, b"", "Inconclusive", "answered 302"),
    "a hook that agrees": (HOOK, 204, b"", "Passed", "the webhook answered 204"),
    "a hook that refuses": (HOOK, 403, b"p95 is\n3 s", "Failed", "the webhook answered 403: p95 is 3 s"),
    "a hook that fails": (HOOK, 500, b"", "Failed", "the webhook answered 500"),
    "a redirect of a hook": (HOOK, 302, b"", "Inconclusive", "redirects are not followed"),
}


@pytest.mark.parametrize(("analysis", "status", "content", "result", "words"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer(analysis: Object, status: int, content: bytes, result: str, words: str) -> None:
    outcome = judge(Analysis.model_validate(analysis), status, content)
    assert outcome.result == result
    assert words in outcome.message


def test_a_query_and_a_body_name_the_pods_of_the_canary() -> None:
    identity = AnalysisId("team", "bot", "u-1", 2, "2026-01-02T03:04:05Z", 1, "2026-01-02T03:04:06Z")
    subject = Subject(identity, "bot-name", V2, V1, ("web-a", "web-b"), ("web-c",), "bot-name@2", "bot-name@1")
    query_request = build_request(AnalysisRequest(Analysis.model_validate(NUMBER), subject))
    assert fill("{{ model }} {{ stableModel }}", subject) == "bot-name@2 bot-name@1"
    assert (query_request.url, query_request.body) == (f"{PROMETHEUS}/api/v1/query", None)
    assert query_request.query == {"query": 'errors{pod=~"web-a|web-b"}'}
    posted = build_request(AnalysisRequest(Analysis.model_validate(HOOK), subject))
    assert posted.url == "http://hook.team/check"
    assert posted.body is not None
    assert set(posted.body) == {"name", "namespace", "phase", "checksum", "metadata"}, "the body of a Flagger webhook"
    assert (posted.body["phase"], posted.body["checksum"]) == ("Progressing", V2[7:19])
    assert posted.body["metadata"]["pods"] == "web-a,web-b"


# what follows from an outcome

STEPS: list[Object] = [{"pods": 1, "pauseSeconds": 60, "analysis": NUMBER}, {"pods": 2, "analysis": HOOK}]
SETTINGS = replace(groups.SETTINGS, analysis_urls=(PROMETHEUS, "http://hook.{namespace}"))


@pytest.fixture(autouse=True)
def _allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "SETTINGS", SETTINGS)


def make_pass(observed: Observed, seconds: float = 0) -> Observed:
    return groups.make_pass(observed, after(seconds))


def update_of(observed: Observed, seconds: float = 0) -> StatusUpdate:
    (update,) = build_updates(observed, make_plan(observed, after(seconds), SETTINGS), None, after(seconds))
    return update


def reach_first_step(**spec: Any) -> Observed:
    """Bring the first of three pods to the second version, where the pause of the step begins."""
    served = make_pass(add_reports(make_pass(group(adapter(strategy={"canary": {"steps": STEPS}}))), "abc", V1, V1))
    return make_pass(add_reports(make_pass(edit(served, adapter=build_source(V2), **spec)), "a", V2, V2))


def end(observed: Observed, result: Any, message: str = "the number is 7", seconds: float = 60) -> Observed:
    """Let the analysis that is due end, and make a pass."""
    due = update_of(observed, seconds).analysis
    assert due is not None
    return make_pass(replace(observed, analyses={"bot": (due.id, Outcome(result, message))}), seconds)


def test_it_begins_after_the_pause_and_holds_up_no_pass() -> None:
    observed = reach_first_step()
    assert "its analysis begins at 2026-01-02T03:05:05Z" in read_message(observed)
    assert update_of(observed, 59).analysis is None
    running = make_pass(observed, 60)
    assert "its analysis is running" in read_message(running)
    assert read_conditions(running)["Ready"] == ("Unknown", "RollingOut")
    due = update_of(running, 61).analysis
    assert due == update_of(observed, 60).analysis, "a pass and a restarted operator ask for the same one"
    assert due is not None
    assert build_request(due).query["query"] == 'errors{pod=~"web-a"}'


def test_one_that_passes_begins_the_next_step_and_is_evidence() -> None:
    observed = end(reach_first_step(), "Passed")
    assert read_status(observed)["canary"]["evidence"] == ["step 1 of 2: 1 pod served it for 60 s; the number is 7"]
    assert read_entry(make_pass(observed, 60)) == (V2, V1, ["web-a", "web-b"])


def test_the_outcome_of_one_step_does_not_count_for_the_next() -> None:
    observed = make_pass(add_reports(make_pass(end(reach_first_step(), "Passed"), 60), "b", V2, V2), 70)
    assert "its analysis is running" in read_message(observed)
    assert read_status(observed)["canary"]["passedSteps"] == 1


def test_one_that_fails_rolls_back_with_its_number_in_the_history() -> None:
    second = make_pass(add_reports(make_pass(end(reach_first_step(), "Passed"), 60), "b", V2, V2), 70)
    observed = make_pass(end(second, "Failed", "the webhook answered 500", 70), 70)
    assert read_entry(observed)[0] == V1
    status = read_status(observed)
    assert (status["rollback"]["reason"], status["rollback"]["from"]["digest"]) == ("AnalysisFailed", V2)
    new = status["history"][0]
    assert (new["event"], new["reason"]) == ("RolledBack", "AnalysisFailed")
    assert "canary step 2 of 2 (2 pods)" in new["message"]
    assert "the webhook answered 500" in new["message"]
    assert new["evidence"] == ["step 1 of 2: 1 pod served it for 60 s; the number is 7"]


def test_without_automatic_rollback_a_failed_one_holds_the_pods_until_a_person_decides() -> None:
    observed = end(reach_first_step(rollback={"automatic": False}), "Failed")
    for _ in range(2):
        observed = make_pass(replace(observed, analyses={}), 99)
        assert read_conditions(observed)["Stalled"] == ("True", "AnalysisFailed")
        assert read_entry(observed) == (V2, V1, ["web-a"])
        assert update_of(observed, 99).analysis is None
    assert read_entry(resume(observed, 1, after(100)))[2] == ["web-a", "web-b"]


def test_an_inconclusive_one_waits_for_a_person_also_after_a_restart() -> None:
    observed = make_pass(replace(end(reach_first_step(), "Inconclusive"), analyses={}, agent_reports={}), 999)
    conditions = read_conditions(observed)
    assert conditions["Ready"] == ("False", "AnalysisInconclusive")
    assert conditions["Suspended"] == ("True", "AnalysisInconclusive")
    assert "the number is 7" in read_message(observed)
    assert update_of(observed, 999).analysis is None
    assert read_entry(resume(observed, 1, after(1000)))[2] == ["web-a", "web-b"]


def test_an_edited_spec_is_analysed_again() -> None:
    observed = edit(end(reach_first_step(), "Inconclusive"), revisionHistoryLimit=3)
    assert "its analysis is running" in read_message(make_pass(observed, 99))
    assert update_of(observed, 99).analysis is not None


def test_a_person_lets_an_inconclusive_one_be_made_again() -> None:
    waiting = end(reach_first_step(), "Inconclusive")
    first = update_of(make_pass(reach_first_step(), 60), 60).analysis
    canary = read_status(waiting)["canary"]
    requested = request(waiting, startedAt=canary["startedAt"], again=canary["analysis"]["at"])
    running = make_pass(requested, 99)
    assert "its analysis is running" in read_message(running)
    repeated = update_of(running, 99).analysis
    assert repeated is not None
    assert first is not None
    assert repeated.id != first.id, "the outcome that is known does not count"
    stale = replace(running, analyses={"bot": (first.id, Outcome("Passed", "m"))})
    assert read_status(make_pass(stale, 99))["canary"]["passedSteps"] == 0
    for result, passed in (("Passed", 1), ("Inconclusive", 0)):
        ended = make_pass(replace(running, analyses={"bot": (repeated.id, Outcome(result, "m"))}), 100)  # type: ignore[arg-type]
        assert read_status(ended)["canary"]["passedSteps"] == passed
    assert read_conditions(make_pass(ended, 101))["Ready"] == ("False", "AnalysisInconclusive")


def test_a_pod_that_leaves_the_step_makes_its_outcome_void() -> None:
    running = make_pass(reach_first_step(), 60)
    due = update_of(running, 60).analysis
    assert due is not None
    away = make_pass(add_reports(running, "a", V2, None, state="Loading"), 61)
    assert update_of(away, 61).analysis is None
    back = make_pass(add_reports(away, "a", V2, V2), 62)
    late = make_pass(replace(back, analyses={"bot": (due.id, Outcome("Passed", "m"))}), 63)
    assert read_status(late)["canary"]["passedSteps"] == 0


def test_suspend_asks_nothing() -> None:
    assert update_of(make_pass(edit(reach_first_step(), suspend=True), 60), 61).analysis is None


@pytest.mark.parametrize(
    ("urls", "words"), [((), "no addresses"), (("http://hook.{namespace}",), "allowed are http://hook.{namespace}")]
)
def test_an_address_that_is_not_allowed_is_refused_before_any_pod_is_touched(
    monkeypatch: pytest.MonkeyPatch, urls: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr(groups, "SETTINGS", replace(groups.SETTINGS, analysis_urls=urls))
    observed = groups.make_pass(group(adapter(strategy={"canary": {"steps": STEPS}})), NOW)
    assert observed.config_map is None
    assert read_conditions(observed)["Accepted"] == ("False", "AnalysisNotAllowed")
    assert f"spec.strategy.canary.steps[0].analysis: the administrator does not allow {PROMETHEUS}" in read_message(
        observed
    )
    assert words in read_message(observed)


def test_the_allowed_addresses_are_a_setting() -> None:
    environment = {
        "TRAINER_IMAGE": "a",
        "OPERATOR_IMAGE": "b",
        "ANALYSIS_URLS": f"{PROMETHEUS}, http://h.{{namespace}}/x",
    }
    settings = Settings.of({f"FINETUNE_OPERATOR_{name}": text for name, text in environment.items()})
    assert settings.analysis_urls == (PROMETHEUS, "http://h.{namespace}/x")
    with pytest.raises(SettingsError, match="FINETUNE_OPERATOR_ANALYSIS_URLS: found 'prometheus:9090'"):
        Settings.of({f"FINETUNE_OPERATOR_{key}": "prometheus:9090" for key in environment})
