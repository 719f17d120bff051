"""What has become of a Job with one pod: it waits, it runs, or it has ended, and why."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from finetune_api.messages import PreflightResult, TrainerResult
from finetune_api.reasons import USER_ERRORS, Reason, reason_of_exit_code
from finetune_operator.conditions import parse_timestamp
from finetune_operator.kube.kinds import Object

PodResult = PreflightResult | TrainerResult
PULL_FAILURES = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
MESSAGE_CHARACTERS = 1500
ABORTED, NCCL = 134, "NCCL"
"""How a trainer ends whose NCCL gave up on the others: it calls abort(3), and its last words are in the log."""


@dataclass(frozen=True)
class Waiting:
    """The pod does not run yet: ``Pending``, ``Unschedulable`` or ``ImagePullFailed``."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Running:
    """The container runs."""

    pod: Object


@dataclass(frozen=True)
class Ended:
    """The container will not run again. ``result`` is what it said itself, if it did; ``reason`` is None if all went well."""

    reason: Reason | None
    message: str
    at: datetime
    exit_code: int | None = None
    result: PodResult | None = None


def observe(job: Object | None, pods: Sequence[Object], now: datetime, pull_grace: float) -> Waiting | Running | Ended:
    """Tell it from the Job (None: it was there, and is gone) and its pods. A pod that fails to pull its image for ``pull_grace`` seconds has ended."""
    if pods:
        pod = max(pods, key=lambda item: (not _terminated(item), item["metadata"].get("creationTimestamp", "")))
        if _terminated(pod) or pod["status"].get("phase") in ("Failed", "Succeeded"):
            return _ended(pod, now)
        return _unfinished(pod, now, pull_grace)
    if job is None:
        return Ended(Reason.PREEMPTED, "Its Job was deleted.", now)
    finished = _finished_condition(job)
    if finished is None:
        return Waiting(Reason.PENDING, "The pod is starting.")
    at = parse_timestamp(finished["lastTransitionTime"])
    if finished["type"] == "Complete":
        return Ended(Reason.PREEMPTED, "It was completed, but its pod was deleted before its result was read.", at)
    return Ended(Reason.PREEMPTED, f"Its pod is gone ({finished.get('message', finished.get('reason', ''))}).", at)


def _unfinished(pod: Object, now: datetime, pull_grace: float) -> Waiting | Running | Ended:
    status = pod["status"]
    state = _state(pod)
    if "running" in state:
        return Running(pod)
    waiting = state.get("waiting", {})
    if waiting.get("reason") in PULL_FAILURES:
        message = f"{waiting['reason']}: {waiting.get('message', '')}"[:MESSAGE_CHARACTERS]
        since = status.get("startTime")
        if since and (now - parse_timestamp(since)).total_seconds() >= pull_grace:
            return Ended(Reason.IMAGE_PULL_FAILED, message, now)
        return Waiting(Reason.IMAGE_PULL_FAILED, message)
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return Waiting(Reason.UNSCHEDULABLE, str(condition.get("message") or "No node fits the pod."))
    return Waiting(Reason.PENDING, "The pod is starting.")


def _ended(pod: Object, now: datetime) -> Ended:
    status = pod["status"]
    terminated = _state(pod).get("terminated") or {}
    at = parse_timestamp(terminated["finishedAt"]) if terminated.get("finishedAt") else now
    exit_code: int | None = terminated.get("exitCode")
    said = str(terminated.get("message") or "").strip()
    result = parse_result(said)
    reason, message = _own_words(result)
    if reason is None and result is not None and (exit_code == 0 or isinstance(result, TrainerResult)):
        return Ended(None, "", at, exit_code, result)
    if reason is not None and reason is not Reason.TRAINER_ERROR:
        return Ended(reason, message, at, exit_code, result)
    interruption = _interruption(pod)
    if interruption:
        return Ended(Reason.PREEMPTED, interruption, at, exit_code, result)
    if terminated.get("reason") == "OOMKilled":
        text = "The container used more memory than its limit: raise spec.resources.limits.memory, or make batches or maxLength smaller."
        return Ended(Reason.HOST_OUT_OF_MEMORY, text, at, exit_code, result)
    if reason is not None:
        return Ended(reason, message, at, exit_code, result)
    if exit_code is None:
        text = str(status.get("message") or status.get("reason") or "its pod failed")
        return Ended(Reason.PREEMPTED, text[:MESSAGE_CHARACTERS], at, None, None)
    tail = (
        said[-MESSAGE_CHARACTERS:]
        if said
        else str(terminated.get("message") or terminated.get("reason") or "it left no message")
    )
    reason = Reason.NCCL_ERROR if exit_code == ABORTED and NCCL in tail else reason_of_exit_code(exit_code)
    return Ended(reason, f"The container exited with {exit_code}: {tail}", at, exit_code, None)


def parse_result(text: str) -> PodResult | None:
    """The result that a termination message carries; None if it carries none."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    models: dict[Any, type[PodResult]] = {"PreflightResult": PreflightResult, "TrainerResult": TrainerResult}
    model = models.get(content.get("kind")) if isinstance(content, dict) else None
    if model is None:
        return None
    try:
        return model.model_validate(content)
    except ValidationError:
        return None


def _own_words(result: PodResult | None) -> tuple[Reason | None, str]:
    if isinstance(result, TrainerResult) and isinstance(result.reason, Reason):
        return result.reason, result.message
    if isinstance(result, PreflightResult) and result.problems:
        final = [problem.reason for problem in result.problems if problem.reason in USER_ERRORS]
        return (final or [result.problems[0].reason])[0], "; ".join(str(problem) for problem in result.problems)
    return None, ""


def _interruption(pod: Object) -> str | None:
    """Why the cluster took the pod away, if it did."""
    for condition in pod["status"].get("conditions", ()):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return f"{condition.get('reason', 'Disrupted')}: {condition.get('message', 'the pod was taken away')}"
    if pod["status"].get("reason") in ("Evicted", "Preempting", "NodeLost", "Shutdown", "Terminated"):
        return f"{pod['status']['reason']}: {pod['status'].get('message', 'the pod was taken away')}"
    return "The pod was deleted." if pod["metadata"].get("deletionTimestamp") else None


def _state(pod: Object) -> Object:
    statuses = pod["status"].get("containerStatuses") or [{}]
    state: Object = statuses[0].get("state", {})
    return state


def _terminated(pod: Object) -> bool:
    return "terminated" in _state(pod)


def _finished_condition(job: Object) -> Object | None:
    for condition in job.get("status", {}).get("conditions", ()):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return dict(condition)
    return None
