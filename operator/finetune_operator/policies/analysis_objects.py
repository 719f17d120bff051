"""Judge the Job or AnalysisRun of an analysis. Pure."""

from collections.abc import Iterable

from finetune_api.limits import quote
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.analysis import Outcome, Result

NO_RESULT = "DeadlineExceeded"
"""Reason of a failed Job that was ended before it had a result."""
RESULT_OF_PHASE: dict[str, Result] = {
    "Successful": "Passed",
    "Failed": "Failed",
    "Error": "Inconclusive",
    "Inconclusive": "Inconclusive",
}
"""What the phase of an AnalysisRun means. Its other phases are those of a run that has not ended."""


def judge_job(job: Object, text: str = "") -> Outcome | None:
    """Judge a Job by its conditions; None while it runs.

    Args:
        job: The Job.
        text: What its last container said when it failed.
    """
    name = job["metadata"]["name"]
    for condition in (job.get("status") or {}).get("conditions", []):
        if condition["status"] != "True":
            continue
        if condition["type"] == "Complete":
            return Outcome("Passed", f"Job {name!r} completed")
        if condition["type"] == "Failed":
            reason = condition.get("reason", "")
            said = quote(text or condition.get("message", ""))
            result: Result = "Inconclusive" if reason == NO_RESULT else "Failed"
            return Outcome(result, f"Job {name!r} failed ({reason})" + (f": {said}" if said else ""))
    return None


def find_last_message(pods: Iterable[Object]) -> str:
    """Find the termination message of the container that ended last with another exit code than 0."""
    ended = [
        state
        for pod in pods
        for container in (pod.get("status") or {}).get("containerStatuses", [])
        if (state := (container.get("state") or {}).get("terminated")) and state.get("exitCode")
    ]
    ended.sort(key=lambda state: state.get("finishedAt") or "")
    return str(ended[-1].get("message", "")) if ended else ""


def judge_run(run: Object) -> Outcome | None:
    """Judge an AnalysisRun by its phase; None while it runs."""
    status = run.get("status") or {}
    phase = status.get("phase", "")
    result = RESULT_OF_PHASE.get(phase)
    if result is None:
        return None
    metrics = [_describe(metric) for metric in status.get("metricResults", [])]
    parts = [part for part in (quote(status.get("message", "")), ", ".join(metrics)) if part]
    return Outcome(result, quote(f"AnalysisRun {run['metadata']['name']!r} is {phase}: {'; '.join(parts)}"))


def _describe(metric: Object) -> str:
    """Describe the result of one metric: its name, its phase and its last value."""
    values = [measurement["value"] for measurement in metric.get("measurements", []) if measurement.get("value")]
    return f"{metric.get('name', '?')} {metric.get('phase', '?')}" + (f" ({quote(values[-1])})" if values else "")
