"""Classify a Job with one pod: it waits, runs, stops, or has ended for a reason. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from finetune_api.lenient import read_known
from finetune_api.limits import OUTPUT_MESSAGE_CHARACTERS, truncate
from finetune_api.messages import CleanUpResult, MergeResult, PreflightResult, TrainerResult
from finetune_api.reasons import USER_ERRORS, Reason, reason_of_exit_code
from finetune_operator.kube.kinds import Object, is_being_deleted
from finetune_operator.policies.batch_job import find_end, find_suspender, is_suspended, may_still_run
from finetune_operator.policies.disruption import find_disruption
from finetune_operator.policies.pod_state import find_duration, has_ended, is_on_lost_node, read_state
from finetune_operator.policies.waiting import (
    Waiting,
    explain_missing_pod,
    explain_replacement,
    explain_suspension,
    explain_unstarted_pod,
)

PodResult = CleanUpResult | MergeResult | PreflightResult | TrainerResult
SUCCEEDED = "Succeeded"
"""Reason of a run that succeeded, also in the results of the trainer and the clean-up."""
ABORTED, NCCL = 134, "NCCL"
"""Exit code of a trainer whose NCCL lost another process and called abort(3), and the word that its log then has."""


@dataclass(frozen=True)
class Running:
    """The container runs. ``lost``: its node does not answer, so it may have ended."""

    pod: Object
    lost: bool = False


@dataclass(frozen=True)
class Stopping:
    """The pod is being deleted or has ended, and its Job does not say yet whether another pod follows."""


@dataclass(frozen=True)
class Ended:
    """The container will not run again.

    ``reason`` is None if all went well. ``result`` is the container's own termination message, if it left one.
    """

    reason: str | None
    message: str
    exit_code: int | None = None
    result: PodResult | None = None
    node: str | None = None
    """Name of the node."""
    seconds: float | None = None
    """How long the container ran, by the clock of its node; None if that is unknown."""


Outcome = Waiting | Running | Stopping | Ended


def classify_pod(
    batch_job: Object | None, pods: Sequence[Object], container: str, warnings: Mapping[str, str] | None = None
) -> Outcome:
    """Classify a Job by its newest pod that has not ended or, if all have ended, by its newest pod.

    Only our own container counts: a service mesh or a secret injector may have added others.

    Args:
        batch_job: The Job; None if it was deleted.
        pods: The Job's pods.
        container: Name of our container.
        warnings: Texts of the newest warning Events about Jobs and pods, by uid.
    """
    if batch_job is not None and is_being_deleted(batch_job):
        batch_job = None
    end = None if batch_job is None else find_end(batch_job)
    if not pods:
        return _classify_missing_pod(batch_job, end, warnings or {})
    pod = max(pods, key=lambda pod: (not has_ended(pod, container), pod["metadata"].get("creationTimestamp", "")))
    state = read_state(pod, container)
    is_deleted = "deletionTimestamp" in pod["metadata"]
    if has_ended(pod, container):
        ended = _describe_ended_pod(pod, container)
        # a suspended Job deletes its pod, and makes another one when it is resumed
        if ended.reason is None or end is not None or batch_job is None or not is_deleted:
            return ended
    elif "running" in state:
        return Running(pod, is_on_lost_node(pod))
    if batch_job is not None and is_suspended(batch_job):
        return explain_suspension(batch_job)
    if is_deleted or batch_job is None:
        return Stopping()
    return explain_unstarted_pod(pod, (warnings or {}).get(pod["metadata"]["uid"]))


def classify_run(
    batch_job: Object | None,
    pod: Object | None,
    container: str,
    warnings: Mapping[str, str] | None = None,
    *,
    has_run: bool = False,
    is_replacement: bool = False,
) -> Outcome:
    """Classify one pod of a Job that replaces pods which are taken away.

    Args:
        batch_job: The Job; None if it was deleted.
        pod: The pod; None if there is none yet, or none any more.
        container: Name of our container.
        warnings: Texts of the newest warning Events about Jobs and pods, by uid.
        has_run: The container of this pod was seen running.
        is_replacement: An earlier pod of the Job has ended.
    """
    unfinished_job = batch_job if batch_job is not None and may_still_run(batch_job) else None
    if pod is not None and has_ended(pod, container):
        ended = _describe_ended_pod(pod, container)
    elif pod is None and has_run and unfinished_job is not None:
        ended = Ended(Reason.PREEMPTED, "Its pod is gone, and nobody saw how it ended.")
    else:
        outcome = classify_pod(batch_job, [pod] if pod is not None else [], container, warnings)
        is_awaited = pod is None and isinstance(outcome, Waiting) and outcome.reason is Reason.PENDING
        return explain_replacement() if is_awaited and is_replacement else outcome
    if unfinished_job is not None and is_suspended(unfinished_job) and ended.reason == Reason.PREEMPTED:
        text = f"The Job {unfinished_job['metadata']['name']} was suspended by {find_suspender(unfinished_job)}."
        return replace(ended, reason=Reason.SUSPENDED, message=text)
    return ended


def _describe_ended_pod(pod: Object, container: str) -> Ended:
    state = read_state(pod, container)
    ended = _classify_ended(pod, state.get("terminated") or {})
    return replace(ended, node=pod.get("spec", {}).get("nodeName"), seconds=find_duration(state))


def _classify_missing_pod(batch_job: Object | None, end: Object | None, warnings: Mapping[str, str]) -> Outcome:
    if batch_job is None:
        return Ended(Reason.PREEMPTED, "Its Job was deleted.")
    if end is None:
        if is_suspended(batch_job):
            return explain_suspension(batch_job)
        return explain_missing_pod(warnings.get(batch_job["metadata"]["uid"]))
    if end["type"] == "Complete":
        return Ended(Reason.PREEMPTED, "It was completed, but its pod was deleted before its result was read.")
    return Ended(Reason.PREEMPTED, f"Its pod is gone ({end.get('message', end.get('reason', ''))}).")


def _classify_ended(pod: Object, terminated: Object) -> Ended:
    status = pod["status"]
    exit_code: int | None = terminated.get("exitCode")
    output = str(terminated.get("message") or "").strip()
    result = parse_result(output)
    reason, message = _read_result(result)
    if reason is None and result is not None and (exit_code == 0 or isinstance(result, TrainerResult)):
        return Ended(None, "", exit_code, result)
    if reason is not None and reason is not Reason.TRAINER_ERROR:
        return Ended(reason, message, exit_code, result)
    interruption = _find_interruption(pod)
    if interruption:
        return Ended(Reason.PREEMPTED, interruption, exit_code, result)
    if terminated.get("reason") == "OOMKilled":
        text = (
            "The container used more memory than its limit: raise spec.resources.limits.memory, or make batches or "
            "maxLength smaller."
        )
        return Ended(Reason.HOST_OUT_OF_MEMORY, text, exit_code, result)
    if reason is not None:
        return Ended(reason, message, exit_code, result)
    if exit_code is None:
        text = str(status.get("message") or status.get("reason") or "its pod failed")
        return Ended(Reason.NODE_ERROR, f"The node did not run the pod: {truncate(text, OUTPUT_MESSAGE_CHARACTERS)}")
    tail = output[-OUTPUT_MESSAGE_CHARACTERS:] or str(terminated.get("reason") or "it left no message")
    reason = Reason.NCCL_ERROR if exit_code == ABORTED and NCCL in tail else reason_of_exit_code(exit_code)
    return Ended(reason, f"The container exited with {exit_code}: {tail}", exit_code, None)


def parse_result(text: str) -> PodResult | None:
    """Parse a termination message; return None if it is no result of ours."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    models: tuple[type[PodResult], ...] = (CleanUpResult, MergeResult, PreflightResult, TrainerResult)
    kind = content.get("kind") if isinstance(content, dict) else None
    model = next((model for model in models if model.__name__ == kind), None)
    if model is None:
        return None
    try:
        result, left_out = read_known(model, content)
    except ValidationError:
        return None
    # A problem that cannot be read must not make the preflight pass.
    return None if any(path.startswith("problems") for path in left_out) else result


def _read_result(result: PodResult | None) -> tuple[str | None, str]:
    if isinstance(result, TrainerResult | MergeResult | CleanUpResult) and result.reason != SUCCEEDED:
        return result.reason, result.message
    if isinstance(result, PreflightResult) and result.problems:
        final = [problem.reason for problem in result.problems if problem.reason in USER_ERRORS]
        return (final or [result.problems[0].reason])[0], "; ".join(str(problem) for problem in result.problems)
    return None, ""


def _find_interruption(pod: Object) -> str | None:
    """Find why the cluster took the pod away, if it did."""
    disruption = find_disruption(pod)
    if disruption is not None:
        return f"{disruption.get('reason', 'Disrupted')}: {disruption.get('message', 'the pod was taken away')}"
    if pod["status"].get("reason") in ("Evicted", "Preempting", "NodeLost", "Shutdown", "Terminated"):
        return f"{pod['status']['reason']}: {pod['status'].get('message', 'the pod was taken away')}"
    return "The pod was deleted." if pod["metadata"].get("deletionTimestamp") else None
