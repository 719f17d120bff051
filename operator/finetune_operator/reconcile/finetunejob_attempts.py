"""The attempts' part of the plan: one trainer Job at a time, the next one by the class of what ended the last."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_api import ladder
from finetune_api.conditions import ConditionType
from finetune_api.finetunejob import EvaluationStatus, FineTuneJob
from finetune_api.messages import TrainerResult
from finetune_api.reasons import Reason
from finetune_operator.conditions import parse_timestamp, sentence, timestamp, truncate
from finetune_operator.kube.kinds import ATTEMPT_LABEL, REVISION_ANNOTATION, ROLE_LABEL, Object
from finetune_operator.notes import Note
from finetune_operator.policies.history import trim
from finetune_operator.policies.outcome import Ended, Running, Waiting, observe
from finetune_operator.policies.retry import Ending, GiveUp, RetryAt, decide
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.model import Observed, Plan
from finetune_operator.resources.jobs import trainer_job
from finetune_operator.resources.names import TRAINER, job_name
from finetune_operator.settings import Settings

SUCCEEDED = "Succeeded"
PULL_CHECK_SECONDS = 10.0
Attempt = dict[str, Any]


@dataclass(frozen=True)
class World:
    """What every step below needs."""

    observed: Observed
    job: FineTuneJob
    revision: str | None
    now: datetime
    settings: Settings


def plan_attempts(world: World, draft: Draft) -> Plan:
    """The plan once the preflight has passed."""
    attempts: list[Attempt] = [dict(attempt) for attempt in draft.fields.get("attempts", [])]
    delete: tuple[Object, ...] = ()
    while True:
        if not attempts or "finishedAt" in attempts[-1]:
            due = _due(attempts, world)
            if due > world.now:
                draft.fields["attempts"] = trim(attempts)
                return Plan(
                    draft.as_json(),
                    delete=delete,
                    notes=tuple(draft.notes),
                    requeue_after=(due - world.now).total_seconds(),
                )
            number = attempts[-1]["number"] + 1 if attempts else 1
            child = _job_of(number, world.observed)
            attempts.append(_begin(number, child, attempts, world))
            if child is None:
                return _start(world, draft, attempts, delete)
        current = attempts[-1]
        child = _job_of(current["number"], world.observed)
        pods = world.observed.pods_of(current["jobName"])
        outcome = observe(child, pods, world.now, world.settings.image_pull_grace_seconds)
        if not isinstance(outcome, Ended):
            return _go_on(world, draft, attempts, outcome)
        final = _finish(draft, current, outcome, world)
        draft.fields["attempts"] = trim(attempts)
        if outcome.reason is Reason.IMAGE_PULL_FAILED and child is not None:
            delete = (child,)
        if final or _gave_up(draft, attempts, world):
            return Plan(draft.as_json(), delete=delete, notes=tuple(draft.notes))


def _due(attempts: list[Attempt], world: World) -> datetime:
    """When the next attempt may begin; the spec's budget may have grown or shrunk since the last one ended."""
    if not attempts:
        return world.now
    decision = _decide(attempts, world)
    return decision.at if isinstance(decision, RetryAt) else world.now


def _decide(attempts: list[Attempt], world: World) -> RetryAt | GiveUp:
    spec = world.job.spec
    endings = [
        Ending(
            attempt["number"],
            Reason(attempt["reason"]),
            parse_timestamp(attempt["finishedAt"]),
            ladder.needs_less_memory(spec, attempt["reason"]),
        )
        for attempt in attempts
    ]
    times = sum(ending.too_large for ending in endings)
    end = None if ladder.reduce_memory(spec, times) else ladder.explain_end(spec, times)
    return decide(endings, spec.failure_policy.retries, world.settings.retry_backoff_seconds, end)


def _fitted(attempts: list[Attempt], world: World) -> FineTuneJob:
    """The job as the newest attempt trains it: made smaller once for each attempt before it that ran out of memory."""
    spec = world.job.spec
    times = sum(ladder.needs_less_memory(spec, attempt.get("reason", "")) for attempt in attempts)
    return world.job.model_copy(update={"spec": ladder.reduce_memory(spec, times) or spec})


def _begin(number: int, child: Object | None, before: list[Attempt], world: World) -> Attempt:
    """A new entry of ``status.attempts``; for a Job that is there already (its status write was lost) with the Job's own time."""
    name = job_name(world.job.metadata.name, TRAINER, number)
    started = child["metadata"]["creationTimestamp"] if child is not None else timestamp(world.now)
    attempt: Attempt = {"number": number, "jobName": name, "startedAt": started}
    if changes := ladder.list_adjustments(world.job.spec, _fitted(before, world).spec):
        attempt["adjustments"] = [change.to_json() for change in changes]
    return attempt


def _start(world: World, draft: Draft, attempts: list[Attempt], delete: tuple[Object, ...]) -> Plan:
    """Create the Job of the newest attempt."""
    number = attempts[-1]["number"]
    draft.fields["attempts"] = trim(attempts)
    _say_starting(draft, number, Waiting(Reason.PENDING, "The pod is starting."))
    job, changes = _fitted(attempts, world), attempts[-1].get("adjustments", [])
    create = trainer_job(world.observed.item, job, number, _revision(world), world.settings, changes)
    return Plan(draft.as_json(), delete=delete, create=create, notes=tuple(draft.notes))


def _trains(number: int) -> str:
    return f"Attempt {number} trains the adapter."


def _say_starting(draft: Draft, number: int, outcome: Waiting) -> None:
    """A pod that is merely starting is not worth a reason of its own; one that cannot start is what a person looks for."""
    message = f"Attempt {number}: {outcome.message}"
    draft.conditions.set(ConditionType.RUNNING, "False", outcome.reason, message)
    if outcome.reason is Reason.PENDING:
        draft.phase("Training", Reason.TRAINING, _trains(number))
    else:
        draft.phase("Training", outcome.reason, message)


def _go_on(world: World, draft: Draft, attempts: list[Attempt], outcome: Waiting | Running) -> Plan:
    """The newest attempt waits or runs."""
    number = attempts[-1]["number"]
    pulling = False
    if isinstance(outcome, Waiting):
        _say_starting(draft, number, outcome)
        pulling = outcome.reason is Reason.IMAGE_PULL_FAILED
    else:
        node = outcome.pod.get("spec", {}).get("nodeName")
        draft.conditions.set(ConditionType.RUNNING, "True", Reason.TRAINING, f"Attempt {number} runs on node {node}.")
        draft.phase("Training", Reason.TRAINING, _trains(number))
        report = (world.observed.progress or {}).get(attempts[-1]["jobName"])
        if report is not None:
            draft.fields["progress"] = report.progress.to_json()
            if report.checkpoint is not None:
                draft.fields["checkpoint"] = report.checkpoint.to_json()
            if report.resumed_from_step is not None:
                attempts[-1]["resumedFromStep"] = report.resumed_from_step
    draft.fields["attempts"] = trim(attempts)
    return Plan(draft.as_json(), notes=tuple(draft.notes), requeue_after=PULL_CHECK_SECONDS if pulling else None)


def _finish(draft: Draft, attempt: Attempt, outcome: Ended, world: World) -> bool:
    """Note how the attempt ended; True if the whole job has succeeded."""
    result = outcome.result if isinstance(outcome.result, TrainerResult) else None
    reason, message = outcome.reason, outcome.message
    if reason is None and (result is None or result.adapter is None):
        reason, message = Reason.TRAINER_ERROR, "The trainer ended well but named no adapter."
    attempt["finishedAt"] = timestamp(outcome.at)
    attempt["reason"] = SUCCEEDED if reason is None else str(reason)
    said = message or (result.message if result else "")
    if said:
        attempt["message"] = truncate(said, 1024)
    if outcome.exit_code is not None:
        attempt["exitCode"] = outcome.exit_code
    if result is not None:
        _take(draft, attempt, result)
    if reason is not None or result is None:
        draft.conditions.set(
            ConditionType.RUNNING, "False", reason or Reason.TRAINER_ERROR, f"Attempt {attempt['number']}: {message}"
        )
        return False
    _succeed(draft, attempt, result)
    return True


def _take(draft: Draft, attempt: Attempt, result: TrainerResult) -> None:
    """What the trainer's result says beside how it ended."""
    for name, value in (("progress", result.progress), ("checkpoint", result.checkpoint), ("report", result.report)):
        if value is not None:
            draft.fields[name] = value.to_json()
    if result.evaluation is not None:
        draft.fields["evaluation"] = result.evaluation.to_json()
        draft.conditions.set(ConditionType.EVALUATED, "True", Reason.EVALUATED, _compared(result.evaluation))
    if result.resumed_from_step is not None:
        attempt["resumedFromStep"] = result.resumed_from_step
    if result.warnings:
        draft.fields["warnings"] = list(dict.fromkeys([*draft.fields.get("warnings", []), *result.warnings]))


def _compared(evaluation: EvaluationStatus) -> str:
    """Base and adapter in one sentence, and in another what the gate says of it, if there is one."""
    change = evaluation.improvement_percent
    text = (
        f"The held-out loss is {evaluation.loss:.4g} with the adapter and {evaluation.base_loss:.4g} without it "
        f"({abs(change):.3g} % {'lower' if change >= 0 else 'higher'})."
    )
    if evaluation.step is not None:
        text = f"{text} The weights are those of step {evaluation.step}, the best of those that were evaluated."
    if evaluation.passed is None:
        return text
    return f"{text} The adapter {'passed' if evaluation.passed else 'did not pass'} the gate."


def _succeed(draft: Draft, attempt: Attempt, result: TrainerResult) -> None:
    assert result.adapter is not None, "checked by the caller"  # noqa: S101
    draft.fields["phase"] = "Succeeded"
    draft.fields["adapter"] = result.adapter.to_json()
    text = f"Attempt {attempt['number']} has put a verified adapter into {result.adapter.uri}."
    draft.conditions.set(ConditionType.RUNNING, "False", Reason.VERIFIED, "The training has ended.")
    draft.conditions.set(ConditionType.SUCCEEDED, "True", Reason.VERIFIED, text)
    draft.conditions.ready(Reason.VERIFIED, text)
    draft.notes.append(Note("Normal", SUCCEEDED, "Finish", text))


def _gave_up(draft: Draft, attempts: list[Attempt], world: World) -> bool:
    """After a failed attempt: True if the whole job has failed; else the next one is announced."""
    last = attempts[-1]
    decision = _decide(attempts, world)
    what = f"Attempt {last['number']} ended with {last['reason']}: {sentence(last.get('message', 'no message'))}"
    if isinstance(decision, GiveUp):
        draft.fail(Reason(last["reason"]), f"{what} Not tried again: {decision.why}.", "Failed")
        return True
    changes = ladder.list_adjustments(world.job.spec, _fitted(attempts, world).spec)
    smaller = f" with {', '.join(str(change) for change in changes)}" if changes else ""
    message = f"{what} Attempt {last['number'] + 1} follows{smaller}."
    draft.conditions.set(ConditionType.RUNNING, "False", Reason.RETRYING, message)
    draft.phase("Retrying", Reason.RETRYING, message)
    draft.notes.append(Note("Warning", "AttemptFailed", "Retry", message, once=str(last["number"])))
    return False


def _job_of(number: int, observed: Observed) -> Object | None:
    for child in observed.jobs:
        labels = child["metadata"]["labels"]
        if labels.get(ROLE_LABEL) == TRAINER and labels.get(ATTEMPT_LABEL) == str(number):
            return child
    return None


def _revision(world: World) -> str | None:
    """The commit of the preflight, or the one that an earlier attempt was given."""
    if world.revision is not None:
        return world.revision
    for child in world.observed.jobs:
        found: str | None = child["metadata"].get("annotations", {}).get(REVISION_ANNOTATION)
        if found:
            return found
    return None
