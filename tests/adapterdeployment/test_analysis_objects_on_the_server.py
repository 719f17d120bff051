"""Jobs and AnalysisRuns that decide on a canary, by the operator against a real API server."""

from typing import Any

import pytest

from tests.adapterdeployment.groups import V1, V2
from tests.adapterdeployment.serving import ServingNamespace
from tests.adapterdeployment.test_canary_on_the_server import await_pods, restart
from tests.adapterdeployment.test_release_on_the_server import report_all, run_finetune, serve_first, status
from tools.testing.kubernetes_api import Object
from tools.testing.waiting import until

pytestmark = [pytest.mark.cluster]

ANALYSIS_OF = "finetune-operator.io/analysis-of=bot"


def jobs(serving: ServingNamespace) -> list[Object]:
    """Return the Jobs of the analyses, the oldest first."""
    found = serving.api.batch.list_namespaced_job(serving.namespace, label_selector=ANALYSIS_OF).items
    plain: list[Object] = serving.api.plain(found)
    return sorted(plain, key=lambda job: str(job["metadata"]["creationTimestamp"]))


def await_job(serving: ServingNamespace, count: int) -> str:
    """Wait until so many analyses have been Jobs; return the name of the newest."""

    def find() -> list[Object] | None:
        found = jobs(serving)
        return found if len(found) == count else None

    return str(until(f"{count} Jobs", find)[-1]["metadata"]["name"])


def create_cron_job(serving: ServingNamespace) -> None:
    """Create a CronJob that never runs by its schedule."""
    container = {"name": "judge", "image": "judge:1", "terminationMessagePolicy": "FallbackToLogsOnError"}
    pod = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    spec = {
        "schedule": "0 0 1 1 *",
        "suspend": True,
        "jobTemplate": {"spec": {"backoffLimit": 0, "template": pod}},
    }
    body = {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "judge"}, "spec": spec}
    serving.kubectl("apply", "-f", "-", stdin=body)


def begin_canary(serving: ServingNamespace, *analyses: Object, **settings: str) -> tuple[list[Object], list[str]]:
    """Serve a first version, and bring a second to the pods of the first step."""
    serving.operator.settings |= {f"FINETUNE_OPERATOR_{name}": value for name, value in settings.items()}
    pods = serve_first(serving)
    names = [str(pod["metadata"]["name"]) for pod in pods]
    steps: list[Any] = [{"percent": 50 * (number + 1), "analysis": each} for number, each in enumerate(analyses)]
    serving.apply_adapter("bot", V2, strategy={"canary": {"steps": steps}})
    restart(serving, pods, [V1, V1])
    await_pods(serving, names[:1])
    report_all(serving, pods[:1], V2)
    return pods, names


def test_a_job_of_the_users_lets_a_version_pass_or_sends_it_back(serving: ServingNamespace) -> None:
    job = {"job": {"cronJobRef": {"name": "judge"}}}
    pods, names = begin_canary(serving, job, job, ANALYSIS_JOBS="true")
    message = serving.await_condition("bot", "Suspended", "True", "AnalysisInconclusive")
    assert "there is no CronJob 'judge' in namespace" in message

    create_cron_job(serving)
    run_finetune(serving, "resume", "bot", "--retry")
    name = await_job(serving, 1)
    until("it is named", lambda: f"(Job '{name}')" in serving.conditions("bot")["Ready"][2])
    restart(serving, pods, [V2, V1])
    serving.api.end_pod(name, 0, "")
    await_pods(serving, names)
    assert status(serving)["canary"]["evidence"] == [f"step 1 of 2: 1 pod served it for 0 s; Job '{name}' completed"]
    assert len(jobs(serving)) == 1, "a restarted operator finds the Job of the one before"

    report_all(serving, pods, V2)
    serving.api.end_pod(await_job(serving, 2), 1, "p95 is 3 s")
    message = serving.await_condition("bot", "Stalled", "True", "RolledBack")
    assert "p95 is 3 s" in message
    until("the pods are told", lambda: serving.desired()[0]["version"]["digest"] == V1)


def test_a_job_that_no_longer_counts_is_deleted(serving: ServingNamespace) -> None:
    create_cron_job(serving)
    begin_canary(serving, {"job": {"cronJobRef": {"name": "judge"}}}, ANALYSIS_JOBS="true")
    await_job(serving, 1)
    run_finetune(serving, "abort", "bot")
    until("it is gone", lambda: not jobs(serving))


def test_without_argo_rollouts_an_analysis_run_is_inconclusive(serving: ServingNamespace) -> None:
    begin_canary(serving, {"analysisTemplateRef": {"name": "success-rate"}}, ANALYSIS_RUNS="true")
    message = serving.await_condition("bot", "Suspended", "True", "AnalysisInconclusive")
    assert "there is no AnalysisTemplate 'success-rate'" in message
    assert "Argo Rollouts is not installed" in message
