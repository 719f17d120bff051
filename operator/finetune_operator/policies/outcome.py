"""Classify a Job with one pod: it waits, it runs, or it has ended, and why. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from finetune_api.lenient import read_known
from finetune_api.limits import OUTPUT_MESSAGE_CHARACTERS, truncate
from finetune_api.messages import PreflightResult, TrainerResult
from finetune_api.reasons import USER_ERRORS, Reason, reason_of_exit_code
from finetune_api.timestamps import parse_timestamp
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.pod_state import has_ended, read_state

PodResult = PreflightResult | TrainerResult
PULL_FAILURES = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
SUCCEEDED = "Succeeded"
"""Reason in the result of a trainer that has made its adapter."""
ABORTED, NCCL = 134, "NCCL"
"""A trainer whose NCCL gave up on the other processes calls abort(3); its log then speaks of NCCL."""


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
    """The container will not run again.

    ``reason`` is None if all went well. ``result`` is the container's own termination message, if it left one.
    """

    reason: str | None
    message: str
    at: datetime
    exit_code: int | None = None
    result: PodResult | None = None
    node: str | None = None
    """Name of the node."""


def classify_pod(
    batch_job: Object | None, pods: Sequence[Object], container: str, now: datetime, pull_grace: float
) -> Waiting | Running | Ended:
    """Classify the newest pod of a Job that does not have ended, or else the newest.

    Only our own container counts: a service mesh or a secret injector may have added others.

    Args:
        batch_job: The Job; None if it was deleted.
        pods: The Job's pods.
        container: Name of our container.
        now: The current time.
        pull_grace: Seconds after which a pod that cannot pull its image counts as ended.
    """
    if pods:
        pod = max(pods, key=lambda pod: (not has_ended(pod, container), pod["metadata"].get("creationTimestamp", "")))
        state = read_state(pod, container)
        if has_ended(pod, container):
            ended = _classify_ended(pod, state.get("terminated") or {}, now)
            return replace(ended, node=pod.get("spec", {}).get("nodeName"))
        return _classify_unfinished(pod, state, now, pull_grace)
    if batch_job is None:
        return Ended(Reason.PREEMPTED, "Its Job was deleted.", now)
    finished = _find_finished_condition(batch_job)
    if finished is None:
        return Waiting(Reason.PENDING, "The pod is starting.")
    at = parse_timestamp(finished["lastTransitionTime"])
    if finished["type"] == "Complete":
        return Ended(Reason.PREEMPTED, "It was completed, but its pod was deleted before its result was read.", at)
    return Ended(Reason.PREEMPTED, f"Its pod is gone ({finished.get('message', finished.get('reason', ''))}).", at)


def _classify_unfinished(pod: Object, state: Object, now: datetime, pull_grace: float) -> Waiting | Running | Ended:
    status = pod["status"]
    if "running" in state:
        return Running(pod)
    waiting = state.get("waiting", {})
    if waiting.get("reason") in PULL_FAILURES:
        message = f"{waiting['reason']}: {waiting.get('message', '')}"[:OUTPUT_MESSAGE_CHARACTERS]
        since = status.get("startTime")
        if since and (now - parse_timestamp(since)).total_seconds() >= pull_grace:
            return Ended(Reason.IMAGE_PULL_FAILED, message, now)
        return Waiting(Reason.IMAGE_PULL_FAILED, message)
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return Waiting(Reason.UNSCHEDULABLE, str(condition.get("message") or "No node fits the pod."))
    return Waiting(Reason.PENDING, "The pod is starting.")


def _classify_ended(pod: Object, terminated: Object, now: datetime) -> Ended:
    status = pod["status"]
    at = parse_timestamp(terminated["finishedAt"]) if terminated.get("finishedAt") else now
    exit_code: int | None = terminated.get("exitCode")
    output = str(terminated.get("message") or "").strip()
    result = parse_result(output)
    reason, message = _read_result(result)
    if reason is None and result is not None and (exit_code == 0 or isinstance(result, TrainerResult)):
        return Ended(None, "", at, exit_code, result)
    if reason is not None and reason is not Reason.TRAINER_ERROR:
        return Ended(reason, message, at, exit_code, result)
    interruption = _find_interruption(pod)
    if interruption:
        return Ended(Reason.PREEMPTED, interruption, at, exit_code, result)
    if terminated.get("reason") == "OOMKilled":
        text = (
            "The container used more memory than its limit: raise spec.resources.limits.memory, or make batches or "
            "maxLength smaller."
        )
        return Ended(Reason.HOST_OUT_OF_MEMORY, text, at, exit_code, result)
    if reason is not None:
        return Ended(reason, message, at, exit_code, result)
    if exit_code is None:
        text = str(status.get("message") or status.get("reason") or "its pod failed")
        return Ended(
            Reason.NODE_ERROR, f"The node did not run the pod: {truncate(text, OUTPUT_MESSAGE_CHARACTERS)}", at
        )
    tail = (
        output[-OUTPUT_MESSAGE_CHARACTERS:]
        if output
        else str(terminated.get("message") or terminated.get("reason") or "it left no message")
    )
    reason = Reason.NCCL_ERROR if exit_code == ABORTED and NCCL in tail else reason_of_exit_code(exit_code)
    return Ended(reason, f"The container exited with {exit_code}: {tail}", at, exit_code, None)


def parse_result(text: str) -> PodResult | None:
    """Parse a termination message; return None if it is no result of ours."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    models: dict[Any, type[PodResult]] = {"PreflightResult": PreflightResult, "TrainerResult": TrainerResult}
    model = models.get(content.get("kind")) if isinstance(content, dict) else None
    if model is None:
        return None
    try:
        result, left_out = read_known(model, content)
    except ValidationError:
        return None
    # A problem that cannot be read must not make the preflight pass.
    return None if any(path.startswith("problems") for path in left_out) else result


def _read_result(result: PodResult | None) -> tuple[str | None, str]:
    if isinstance(result, TrainerResult) and result.reason != SUCCEEDED:
        return result.reason, result.message
    if isinstance(result, PreflightResult) and result.problems:
        final = [problem.reason for problem in result.problems if problem.reason in USER_ERRORS]
        return (final or [result.problems[0].reason])[0], "; ".join(str(problem) for problem in result.problems)
    return None, ""


def _find_interruption(pod: Object) -> str | None:
    """Find why the cluster took the pod away, if it did."""
    for condition in pod["status"].get("conditions", ()):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return f"{condition.get('reason', 'Disrupted')}: {condition.get('message', 'the pod was taken away')}"
    if pod["status"].get("reason") in ("Evicted", "Preempting", "NodeLost", "Shutdown", "Terminated"):
        return f"{pod['status']['reason']}: {pod['status'].get('message', 'the pod was taken away')}"
    return "The pod was deleted." if pod["metadata"].get("deletionTimestamp") else None


def _find_finished_condition(batch_job: Object) -> Object | None:
    for condition in batch_job.get("status", {}).get("conditions", ()):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return dict(condition)
    return None
