"""Decide at which step the canary of a version is, and when the next one begins. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from finetune_api.adapterdeployment import AnalysisStatus, Canary, CanaryStatus, CanaryStep, PromotionRequest
from finetune_api.limits import truncate
from finetune_api.reasons import Reason
from finetune_api.timestamps import format_timestamp, parse_timestamp
from finetune_operator.policies.analysis import Outcome
from finetune_operator.policies.rollout import PodView

ANALYSIS_SECONDS = 60.0
"""Seconds until the next look at an analysis that runs; its end enqueues a pass by itself."""
EVIDENCE_CHARACTERS = 400
"""Maximum length of one sentence of the evidence."""


@dataclass(frozen=True)
class CanaryStage:
    """The current step of a version's canary: until it is over, ``pods`` pods serve the version."""

    number: int
    """Number of the step, from 1."""
    total: int
    """Number of steps."""
    step: CanaryStep
    pods: int
    reached: bool
    """Whether so many pods serve the version and take traffic, and the gateway was told its share."""
    traffic: int | None = None
    """Percentage of the requests that the version gets; None: pods count."""


@dataclass(frozen=True)
class Hold:
    """Why the next step does not begin yet."""

    reason: Reason
    message: str
    seconds: float | None = None
    """Seconds until the next look; None if a person must let it go on."""
    analysis_runs: bool = False
    """Whether it waits for the end of an analysis."""


def find_stage(
    canary: Canary | None, status: CanaryStatus | None, digest: str, replicas: int, pods: Sequence[PodView]
) -> CanaryStage | None:
    """Find the step at which the canary of a version is; None if every pod may take the version.

    Args:
        canary: The steps of the spec.
        status: How far the pass before had come, perhaps with another version.
        digest: Digest of the version.
        replicas: Number of pods that the workload is to have.
        pods: The pods that it has.
    """
    number = _find_number(canary, status, digest)
    if canary is None or number is None:
        return None
    step = canary.steps[number - 1]
    size = count_pods(step, replicas)
    serving = sum(pod.proven and pod.available for pod in pods)
    return CanaryStage(number, len(canary.steps), step, size, serving >= size)


def find_traffic_stage(
    canary: Canary | None, status: CanaryStatus | None, digest: str, pods: int
) -> CanaryStage | None:
    """Find the step of a canary by shares of the requests, not reached yet; None if the version gets all of them."""
    number = _find_number(canary, status, digest)
    if canary is None or number is None:
        return None
    step = canary.steps[number - 1]
    return CanaryStage(number, len(canary.steps), step, pods, reached=False, traffic=step.traffic_percent)


def _find_number(canary: Canary | None, status: CanaryStatus | None, digest: str) -> int | None:
    """Find the number of a version's present step, from 1; None if all are over, or there is no canary."""
    passed = status.passed_steps if status is not None and status.digest == digest else 0
    return passed + 1 if canary is not None and passed < len(canary.steps) else None


def count_pods(step: CanaryStep, replicas: int) -> int:
    """Count the pods of a step: at least one, at most ``replicas``; a percentage is rounded up."""
    size = step.pods if step.pods is not None else -(-replicas * (step.percent or 0) // 100)
    return max(1, min(size, replicas))


def advance(
    stage: CanaryStage,
    status: CanaryStatus,
    request: PromotionRequest | None,
    outcome: Outcome | None,
    generation: int,
    now: datetime,
) -> tuple[CanaryStatus, Hold | None]:
    """Advance a canary by at most one step, or past all of them if a person promoted it.

    Args:
        stage: The present step.
        status: How far the pass before had come.
        request: What a person asked for.
        outcome: The outcome of the step's analysis; None if it was not made or has not ended.
        generation: The metadata.generation of the AdapterDeployment.
        now: The time of this pass.

    Returns:
        The new status, and what the present step waits for; None while its pods still take the version, and after a
        step has passed.
    """
    label = f"step {stage.number} of {stage.total}"
    if request is not None and request.covers(status.started_at, stage.number):
        if request.step is None:
            return _pass(status, stage.total, f"a person promoted it at {label}"), None
        if stage.reached:
            return _pass(status, stage.number, f"{label}: a person let it go on"), None
    if not stage.reached:
        return _update(status, **_size(stage), reached_at=None, analysis=None), None
    status = _update(status, **_size(stage), reached_at=status.reached_at or format_timestamp(now))
    pause, analysis = stage.step.pause_seconds, stage.step.analysis
    if pause is None and analysis is None:
        return status, Hold(Reason.CANARY_PAUSED, "it waits for a person")
    end = _find_end(stage, status)
    if now < end:
        then = "the next step begins" if analysis is None else "its analysis begins"
        text = f"{then} at {format_timestamp(end)} (pauseSeconds: {pause})"
        return status, Hold(Reason.ROLLING_OUT, text, (end - now).total_seconds())
    served = f"{label}: {_describe_size(stage)} for {pause or 0} s"
    if analysis is None:
        return _pass(status, stage.number, served), None
    if outcome is not None and outcome.result == "Passed":
        return _pass(status, stage.number, f"{served}; {outcome.message}"), None
    if outcome is not None:
        result = AnalysisStatus(
            result=outcome.result,
            message=outcome.message,
            at=format_timestamp(now),
            observed_generation=generation,
        )
        status = _update(status, analysis=result)
    analysis_status = _find_analysis(status, generation)
    if analysis_status is not None and request is not None and request.again == analysis_status.at:
        analysis_status = None
    return _wait_for_analysis(_update(status, analysis=analysis_status))


def needs_analysis(stage: CanaryStage, status: CanaryStatus, generation: int, now: datetime) -> bool:
    """Return whether the analysis of the present step is to be made now, or is running."""
    if stage.step.analysis is None or not stage.reached or status.reached_at is None:
        return False
    return now >= _find_end(stage, status) and _find_analysis(status, generation) is None


def _wait_for_analysis(status: CanaryStatus) -> tuple[CanaryStatus, Hold]:
    analysis = status.analysis
    if analysis is None:
        return status, Hold(Reason.ROLLING_OUT, "its analysis is running", ANALYSIS_SECONDS, analysis_runs=True)
    if analysis.result == "Failed":
        return status, Hold(Reason.ANALYSIS_FAILED, f"its analysis failed: {analysis.message}")
    return status, Hold(Reason.ANALYSIS_INCONCLUSIVE, f"its analysis is inconclusive, so it waits: {analysis.message}")


def _find_analysis(status: CanaryStatus, generation: int) -> AnalysisStatus | None:
    """Find the result of the analysis. An edit of the spec repeats the analysis, so an older result is None."""
    analysis = status.analysis
    return analysis if analysis is not None and analysis.observed_generation == generation else None


def _find_end(stage: CanaryStage, status: CanaryStatus) -> datetime:
    return parse_timestamp(status.reached_at or "") + timedelta(seconds=stage.step.pause_seconds or 0)


def _pass(status: CanaryStatus, steps: int, evidence: str) -> CanaryStatus:
    return _update(
        status,
        passed_steps=steps,
        pods=None,
        traffic_percent=None,
        reached_at=None,
        analysis=None,
        evidence=[*status.evidence, truncate(evidence, EVIDENCE_CHARACTERS)],
    )


def _update(status: CanaryStatus, **fields: Any) -> CanaryStatus:
    return status.model_copy(update=fields)


def _size(stage: CanaryStage) -> dict[str, int | None]:
    by_traffic = stage.traffic is not None
    return {"pods": None if by_traffic else stage.pods, "traffic_percent": stage.traffic}


def _describe_size(stage: CanaryStage) -> str:
    if stage.traffic is not None:
        return f"it answered {stage.traffic} % of the requests"
    return "1 pod served it" if stage.pods == 1 else f"{stage.pods} pods served it"
