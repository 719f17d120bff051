"""Analyses by a Job or an AnalysisRun: what is made of the user's template, and how its end is judged."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.adapterdeployment import Analysis
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.analysis import AnalysisId, AnalysisRequest, Subject
from finetune_operator.policies.analysis_objects import find_last_message, judge_job, judge_run
from finetune_operator.reconcile.adapterdeployment.plan import make_plan
from finetune_operator.resources.analysis_objects import (
    UnusableTemplateError,
    build_analysis_run,
    build_job,
    name_object,
)
from finetune_operator.settings import Settings
from tests.adapterdeployment import groups
from tests.adapterdeployment.groups import NOW, V1, V2, adapter, group

ID = AnalysisId("team", "bot", "u-1", 2, "2026-01-02T03:04:05Z", 1, "2026-01-02T03:04:06Z")
SUBJECT = Subject(ID, "bot-name", V2, V1, ("web-a", "web-b"), ("web-c",), "bot-name", "bot-name")
JOB = {"job": {"cronJobRef": {"name": "judge"}}}
CRON_JOB: Object = {
    "metadata": {"name": "judge"},
    "spec": {
        "schedule": "0 0 1 1 *",
        "suspend": True,
        "jobTemplate": {
            "metadata": {"labels": {"team": "a"}, "annotations": {"note": "x"}},
            "spec": {
                "backoffLimit": 0,
                "template": {
                    "spec": {
                        "restartPolicy": "Never",
                        "initContainers": [{"name": "fetch", "image": "curl"}],
                        "containers": [{"name": "judge", "image": "judge:1", "env": [{"name": "A", "value": "b"}]}],
                    }
                },
            },
        },
    },
}


def run_request(**args: str) -> AnalysisRequest:
    ref = {"name": "success-rate", "args": [{"name": name, "value": value} for name, value in args.items()]}
    return AnalysisRequest(Analysis.model_validate({"analysisTemplateRef": ref}), SUBJECT)


def template(**spec: Any) -> Object:
    metrics = [{"name": "errors", "provider": {}}]
    args = [{"name": "pods"}, {"name": "limit", "value": "5"}]
    return {"metadata": {"name": "success-rate"}, "spec": {"metrics": metrics, "args": args, **spec}}


def test_a_job_is_made_of_the_cron_jobs_template_and_is_told_about_the_canary() -> None:
    job = build_job(CRON_JOB, AnalysisRequest(Analysis.model_validate(JOB), SUBJECT))
    assert job["metadata"]["name"] == name_object(ID)
    assert job["metadata"]["labels"] == {"team": "a", "finetune-operator.io/analysis-of": "bot"}
    assert job["metadata"]["annotations"] == {"note": "x", "cronjob.kubernetes.io/instantiate": "manual"}
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("AdapterDeployment", "bot", "u-1")
    assert (job["spec"]["backoffLimit"], job["spec"]["ttlSecondsAfterFinished"]) == (0, 86400)
    pod = job["spec"]["template"]["spec"]
    for container in (pod["containers"][0], pod["initContainers"][0]):
        env = {entry["name"]: entry["value"] for entry in container["env"]}
        assert env["FINETUNE_PODS"] == "web-a,web-b"
        assert env["FINETUNE_STABLE_PODS"] == "web-c"
        assert (env["FINETUNE_DIGEST"], env["FINETUNE_PREVIOUS_DIGEST"]) == (V2, V1)
        assert (env["FINETUNE_SERVED_NAME"], env["FINETUNE_STEP"]) == ("bot-name", "1")
    assert pod["containers"][0]["env"][0] == {"name": "A", "value": "b"}
    assert "env" not in CRON_JOB["spec"]["jobTemplate"]["spec"]["template"]["spec"]["initContainers"][0]


def test_the_lifetime_that_a_template_sets_is_kept() -> None:
    spec = CRON_JOB["spec"]["jobTemplate"]["spec"]
    cron_job = {"spec": {"jobTemplate": {"spec": {**spec, "ttlSecondsAfterFinished": 5}}}}
    job = build_job(cron_job, AnalysisRequest(Analysis.model_validate(JOB), SUBJECT))
    assert job["spec"]["ttlSecondsAfterFinished"] == 5


@pytest.mark.parametrize(
    "change",
    [{"uid": "u-2"}, {"generation": 3}, {"step": 2}, {"started_at": "x"}, {"reached_at": "x"}, {"again": "x"}],
    ids=str,
)
def test_each_analysis_has_a_name_of_its_own_and_always_the_same(change: dict[str, Any]) -> None:
    assert name_object(ID) == name_object(replace(ID))
    assert name_object(ID) != name_object(replace(ID, **change))
    assert len(name_object(replace(ID, name="x" * 200))) <= 63


def test_an_analysis_run_has_the_templates_metrics_and_our_arguments() -> None:
    run = build_analysis_run(template(dryRun=[{"metricName": "errors"}]), run_request(pods="{{ pods }}"))
    assert run["spec"]["metrics"] == [{"name": "errors", "provider": {}}]
    assert run["spec"]["dryRun"] == [{"metricName": "errors"}]
    assert run["spec"]["args"] == [{"name": "pods", "value": "web-a|web-b"}, {"name": "limit", "value": "5"}]
    assert run["metadata"]["ownerReferences"][0]["uid"] == "u-1"


@pytest.mark.parametrize(
    ("spec", "args", "words"),
    [
        ({"templates": [{"templateName": "x"}]}, {}, "write its metrics into one AnalysisTemplate"),
        ({}, {"pod": "x"}, "has no argument 'pod'; it has: pods, limit"),
        ({"args": []}, {"pod": "x"}, "it has: none"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(spec: Object, args: dict[str, str], words: str) -> None:
    with pytest.raises(UnusableTemplateError, match=words):
        build_analysis_run(template(**spec), run_request(**args))


def job_with(*conditions: tuple[str, str, str]) -> Object:
    listed = [{"type": kind, "status": status, "reason": reason} for kind, status, reason in conditions]
    return {"metadata": {"name": "bot-analysis"}, "status": {"conditions": listed}}


@pytest.mark.parametrize(
    ("job", "said", "result", "words"),
    [
        (job_with(("Complete", "True", "")), "", "Passed", "Job 'bot-analysis' completed"),
        (job_with(("SuccessCriteriaMet", "True", ""), ("Complete", "True", "")), "", "Passed", "completed"),
        (job_with(("Failed", "True", "BackoffLimitExceeded")), "p95 is\n3 s", "Failed", "p95 is 3 s"),
        (job_with(("Failed", "True", "DeadlineExceeded")), "", "Inconclusive", "DeadlineExceeded"),
    ],
)
def test_the_end_of_a_job(job: Object, said: str, result: str, words: str) -> None:
    outcome = judge_job(job, said)
    assert outcome is not None
    assert (outcome.result, words in outcome.message) == (result, True), outcome


@pytest.mark.parametrize(
    "job", [{"metadata": {"name": "x"}}, job_with(("Failed", "False", "")), job_with(("Suspended", "True", ""))]
)
def test_a_job_that_runs_has_no_outcome(job: Object) -> None:
    assert judge_job(job) is None


def test_what_the_last_failed_container_said_is_found() -> None:
    def pod(at: str, code: int, message: str) -> Object:
        ended = {"exitCode": code, "finishedAt": at, "message": message}
        return {"status": {"containerStatuses": [{"state": {"terminated": ended}}, {"state": {"running": {}}}]}}

    assert find_last_message([pod("2", 1, "second"), pod("1", 1, "first"), pod("3", 0, "sidecar"), {}]) == "second"
    assert find_last_message([]) == ""


@pytest.mark.parametrize(
    ("phase", "result"),
    [
        ("Successful", "Passed"),
        ("Failed", "Failed"),
        ("Error", "Inconclusive"),
        ("Inconclusive", "Inconclusive"),
        ("Running", None),
        ("Pending", None),
        ("", None),
    ],
)
def test_the_phase_of_an_analysis_run(phase: str, result: str | None) -> None:
    metric = {"name": "errors", "phase": phase, "measurements": [{"value": "[0.1]"}, {"value": "[0.2]"}]}
    status = {"phase": phase, "message": "", "metricResults": [metric]}
    outcome = judge_run({"metadata": {"name": "run"}, "status": status})
    assert (outcome.result if outcome else None) == result
    assert outcome is None or f"errors {phase} ([0.2])" in outcome.message
    assert judge_run({"metadata": {"name": "run"}}) is None


@pytest.mark.parametrize(
    ("analysis", "allowing", "value"),
    [
        (JOB, replace(groups.SETTINGS, analysis_jobs=True), "analysis.jobs.enabled"),
        (
            {"analysisTemplateRef": {"name": "x"}},
            replace(groups.SETTINGS, analysis_runs=True),
            "analysis.analysisRuns.enabled",
        ),
    ],
)
def test_both_need_the_administrators_permission(analysis: Object, allowing: Settings, value: str) -> None:
    observed = group(adapter(strategy={"canary": {"steps": [{"pods": 1, "analysis": analysis}]}}))
    (refused,) = make_plan(observed, NOW, groups.SETTINGS).members
    assert refused.obstacle is not None
    assert value in refused.obstacle.message
    (allowed,) = make_plan(observed, NOW, allowing).members
    assert allowed.obstacle is None
