"""Set the fields, conditions and events of a FineTuneJob's status, for each step of the plan. Pure."""

from collections.abc import Sequence

from finetune_api.conditions import ConditionType
from finetune_api.finetunejob import Adjustment, Attempt, CachedModel, EvaluationStatus, FineTuneJobStatus, Phase
from finetune_api.improvement import describe_improvement
from finetune_api.limits import end_sentence
from finetune_api.messages import PreflightResult, ProgressReport, TrainerResult
from finetune_api.reasons import USER_ERRORS, Reason
from finetune_api.sizes import format_size
from finetune_api.timestamps import format_timestamp
from finetune_operator.event_record import EventRecord
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.batch_job import list_edits
from finetune_operator.policies.halt import Halt
from finetune_operator.policies.history import trim, trim_warnings
from finetune_operator.policies.outcome import SUCCEEDED, Outcome, Running
from finetune_operator.policies.preflight_reuse import EarlierPreflight
from finetune_operator.policies.waiting import Waiting
from finetune_operator.reconcile.finetunejob.model import JobStatusBuilder

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
"""Taint by which a person declares that no pod runs on a node any more."""
PREFLIGHT_CHECKS = "The preflight checks model, dataset, modules and output; no GPU is asked for before it has passed."


def set_phase(status: JobStatusBuilder, phase: Phase, reason: str, message: str) -> None:
    """Show that the job is in progress."""
    status.set(FineTuneJobStatus(phase=phase))
    status.conditions.set_progressing(reason, message)


def set_failed(status: JobStatusBuilder, reason: str, message: str, event: str, attempt: int | None = None) -> None:
    """Show that the job has failed and is not tried again; ``event`` is the reason of the event."""
    status.set(FineTuneJobStatus(phase="Failed"))
    status.conditions.set(ConditionType.SUCCEEDED, "False", reason, message)
    status.conditions.set_stalled(reason, message)
    status.events.append(EventRecord("Warning", event, "Stop", f"{reason}: {message}", attempt=attempt))


def set_invalid(status: JobStatusBuilder, message: str) -> None:
    """Show that the spec is invalid. A changed spec is checked again."""
    status.set(FineTuneJobStatus(phase="Failed"))
    status.conditions.set(ConditionType.ACCEPTED, "False", Reason.SPEC_INVALID, message)
    status.conditions.set_stalled(Reason.SPEC_INVALID, message)


def set_refused(status: JobStatusBuilder, message: str) -> None:
    """Show that the API server refuses the Job of this spec, so that the spec is invalid."""
    status.conditions.set(ConditionType.ACCEPTED, "False", Reason.SPEC_INVALID, message)
    set_failed(status, Reason.SPEC_INVALID, message, "SpecInvalid")


def set_blocked(status: JobStatusBuilder, message: str) -> None:
    """Show that a Job cannot be created now, for a reason outside of the spec."""
    if not status.has("phase"):
        status.set(FineTuneJobStatus(phase="Pending"))
    status.conditions.set_progressing(Reason.PENDING, message)


def set_preflights(status: JobStatusBuilder, preflights: Sequence[Attempt]) -> None:
    """Show the runs of the preflight, the newest ones if there are many."""
    status.set(FineTuneJobStatus(preflights=trim(preflights)))


def set_preflight_progress(status: JobStatusBuilder, outcome: Outcome | None) -> None:
    """Show that the preflight waits or runs.

    A pod that is merely starting gets no message of its own.
    """
    reason, message = Reason.PREFLIGHT_RUNNING, PREFLIGHT_CHECKS
    if isinstance(outcome, Waiting) and outcome.reason is not Reason.PENDING:
        reason, message = outcome.reason, outcome.message
    elif isinstance(outcome, Running) and outcome.lost:
        reason, message = Reason.NODE_LOST, _describe_lost(outcome.pod)
    status.conditions.set(ConditionType.PREFLIGHT_PASSED, "Unknown", reason, message)
    set_phase(status, "Preflight", reason, message)


def set_preflight_repeated(status: JobStatusBuilder, reason: str, message: str) -> None:
    """Show that the preflight itself failed and is repeated."""
    text = f"The preflight itself failed and is repeated: {reason}: {message}"
    status.conditions.set(ConditionType.PREFLIGHT_PASSED, "Unknown", Reason.RETRYING, text)
    set_phase(status, "Preflight", Reason.RETRYING, text)


def set_preflight_failed(status: JobStatusBuilder, reason: str, message: str, why: str) -> None:
    """Show that the preflight has failed; ``why`` says why it is not repeated."""
    status.conditions.set(ConditionType.PREFLIGHT_PASSED, "False", reason, message)
    text = message if reason in USER_ERRORS else f"{end_sentence(message)} Not tried again: {why}."
    set_failed(status, reason, text, "PreflightFailed")


def set_preflight_reused(status: JobStatusBuilder, earlier: EarlierPreflight) -> None:
    """Show that the preflight of another job, which made the same checks, has passed."""
    origin = f" Taken from the preflight of FineTuneJob {earlier.job}, which checked the same"
    set_preflight_passed(status, earlier.result, f"{origin} until {format_timestamp(earlier.ended)}.")


def set_preflight_passed(status: JobStatusBuilder, result: PreflightResult, origin: str = "") -> None:
    """Show that the preflight has passed, with its estimate and warnings. ``origin`` says whose it was."""
    text = "Model, dataset and output are usable."
    if result.estimate is not None:
        status.set(FineTuneJobStatus(estimate=result.estimate))
        trainable, total = result.estimate.trainable_parameters, result.estimate.total_parameters
        text = f"Model, dataset and output are usable; {trainable:,} of {total:,} parameters will be trained."
    if result.cached_model is not None:
        status.set(FineTuneJobStatus(cached_model=result.cached_model))
        text += f" {_describe_cached(result.cached_model)}"
    if result.warnings:
        status.set(FineTuneJobStatus(warnings=trim_warnings(result.warnings)))
    if result.model_revision is not None:
        status.set(FineTuneJobStatus(model_revision=result.model_revision))
    status.conditions.set(ConditionType.PREFLIGHT_PASSED, "True", Reason.PREFLIGHT_PASSED, text + origin)


def _describe_cached(model: CachedModel) -> str:
    size = format_size(model.size_bytes)
    if not model.downloaded_bytes:
        return f"The model was in the cache already ({size})."
    return f"The model is in the cache: {format_size(model.downloaded_bytes)} of {size} were downloaded."


def set_attempts(status: JobStatusBuilder, attempts: Sequence[Attempt]) -> None:
    """Show the attempts, the newest ones if there are many."""
    status.set(FineTuneJobStatus(attempts=trim(attempts)))


def set_starting(status: JobStatusBuilder, number: int, outcome: Waiting) -> None:
    """Show that the pod of an attempt does not run yet.

    Only a pod that cannot start changes the reason of Ready.
    """
    message = f"Attempt {number}: {outcome.message}"
    status.conditions.set(ConditionType.RUNNING, "False", outcome.reason, message)
    if outcome.reason is Reason.PENDING:
        set_phase(status, "Training", Reason.TRAINING, _describe_training(number))
    else:
        phase: Phase = "Retrying" if outcome.reason is Reason.RETRYING else "Training"
        set_phase(status, phase, outcome.reason, message)


def set_suspending(status: JobStatusBuilder, message: str) -> None:
    """Show that the pods of a suspended job are ending."""
    status.conditions.set(ConditionType.SUSPENDED, "False", Reason.SUSPENDING, message)
    set_phase(status, "Suspended", Reason.SUSPENDING, message)


def set_suspended(status: JobStatusBuilder) -> None:
    """Show that the job is suspended, and that it has no pod."""
    checkpoint = status.read().checkpoint
    begin = "" if checkpoint is None else f" from the checkpoint of step {checkpoint.step}"
    message = f"The job has no pod and holds no GPU. It continues{begin} when spec.suspend is false."
    status.set(FineTuneJobStatus(phase="Suspended"))
    if status.conditions.has(ConditionType.RUNNING):
        status.conditions.set(ConditionType.RUNNING, "False", Reason.SUSPENDED, message)
    status.conditions.set(ConditionType.SUSPENDED, "True", Reason.SUSPENDED, message)
    status.conditions.set_idle(Reason.SUSPENDED, message)


def set_resumed(status: JobStatusBuilder) -> None:
    """Show that the job continues, if it was suspended."""
    if status.conditions.has(ConditionType.SUSPENDED):
        status.conditions.set(ConditionType.SUSPENDED, "False", Reason.RESUMED, "The job continues.")


def set_stopping(status: JobStatusBuilder, halt: Halt, number: int) -> None:
    """Show that an attempt is asked to save a checkpoint and to end."""
    message = f"{halt.message} Attempt {number} saves a checkpoint and ends."
    if halt.reason is Reason.SUSPENDED:
        set_suspending(status, message)
    else:
        set_phase(status, "Training", halt.reason, message)


def set_halted(status: JobStatusBuilder, halt: Halt, others: Sequence[str]) -> None:
    """Show that no attempt begins now; ``others`` are Jobs and pods that have not ended yet."""
    if halt.reason is not Reason.SUSPENDED:
        set_failed(status, halt.reason, halt.message, "Failed")
    elif others:
        set_suspending(status, f"{halt.message} These have not ended yet: {', '.join(others)}.")
    else:
        set_suspended(status)


def set_waiting_for(status: JobStatusBuilder, number: int, others: Sequence[str]) -> None:
    """Show that an attempt waits until an earlier one cannot train any more."""
    message = f"Attempt {number} begins when these have ended: {', '.join(others)}."
    set_phase(status, "Retrying", Reason.RETRYING, message)


def set_node_lost(status: JobStatusBuilder, number: int, pod: Object) -> None:
    """Show that the state of an attempt is unknown, because its node does not answer."""
    message = f"Attempt {number}: {_describe_lost(pod)}"
    status.conditions.set(ConditionType.RUNNING, "Unknown", Reason.NODE_LOST, message)
    set_phase(status, "Training", Reason.NODE_LOST, message)


def set_edited(status: JobStatusBuilder, batch_job: Object, number: int) -> None:
    """Show that a Job is deleted because somebody changed it."""
    name = batch_job["metadata"]["name"]
    note = (
        f"Somebody changed the Job {name} ({', '.join(list_edits(batch_job))}). It must have one pod and repeat "
        "nothing that failed. It is deleted, and another one follows."
    )
    set_phase(status, "Retrying", Reason.RETRYING, note)
    status.events.append(EventRecord("Warning", "JobEdited", "Delete", note, name, number))


def set_running(status: JobStatusBuilder, number: int, pod: Object, report: ProgressReport | None) -> None:
    """Show that an attempt trains, with the progress of its newest report."""
    node = pod.get("spec", {}).get("nodeName")
    status.conditions.set(ConditionType.RUNNING, "True", Reason.TRAINING, f"Attempt {number} runs on node {node}.")
    set_phase(status, "Training", Reason.TRAINING, _describe_training(number))
    if report is not None:
        status.set(FineTuneJobStatus(progress=report.progress))
        if report.checkpoint is not None:
            status.set(FineTuneJobStatus(checkpoint=report.checkpoint))


def set_trainer_result(status: JobStatusBuilder, result: TrainerResult) -> None:
    """Show the trainer's result, whether it succeeded or not. Call it once for each attempt: it adds up usage."""
    if result.progress is not None:
        status.set(FineTuneJobStatus(progress=result.progress))
    if result.checkpoint is not None:
        status.set(FineTuneJobStatus(checkpoint=result.checkpoint))
    if result.report is not None:
        status.set(FineTuneJobStatus(report=result.report))
    if result.training_choice is not None:
        status.set(FineTuneJobStatus(training_choice=result.training_choice))
    if result.usage is not None:
        before = status.read().usage
        status.set(FineTuneJobStatus(usage=before.plus(result.usage) if before else result.usage))
    if result.evaluation is not None:
        status.set(FineTuneJobStatus(evaluation=result.evaluation))
        status.conditions.set(
            ConditionType.EVALUATED, "True", Reason.EVALUATED, _describe_evaluation(result.evaluation)
        )
    if result.warnings:
        warnings = trim_warnings([*status.read().warnings, *result.warnings])
        status.set(FineTuneJobStatus(warnings=warnings))


def set_attempt_failed(status: JobStatusBuilder, number: int, reason: str, message: str) -> None:
    """Show that an attempt no longer runs."""
    status.conditions.set(ConditionType.RUNNING, "False", reason, f"Attempt {number}: {message}")


def set_retrying(status: JobStatusBuilder, attempt: Attempt, changes: Sequence[Adjustment]) -> None:
    """Show that another attempt follows this one; because of ``changes`` it needs less memory."""
    message = _describe_retry(attempt, changes)
    status.conditions.set(ConditionType.RUNNING, "False", Reason.RETRYING, message)
    set_phase(status, "Retrying", Reason.RETRYING, message)


def add_attempt_failed_event(status: JobStatusBuilder, attempt: Attempt, changes: Sequence[Adjustment]) -> None:
    """Add the event that an attempt has failed and another one follows."""
    message = _describe_retry(attempt, changes)
    status.events.append(EventRecord("Warning", "AttemptFailed", "Retry", message, str(attempt.number), attempt.number))


def set_never_started(status: JobStatusBuilder, role: str, waiting: Waiting, limit: int | None) -> None:
    """Show the end of a job whose pod did not start in time."""
    reason = Reason.CONTAINER_NOT_STARTED if waiting.reason is Reason.PENDING else waiting.reason
    text = f"The {role}'s pod did not start within {limit} s (spec.pendingDeadlineSeconds): {waiting.message}"
    set_failed(status, reason, text, "Failed")


def set_given_up(status: JobStatusBuilder, attempt: Attempt, reason: str, why: str) -> None:
    """Show that no attempt follows this one; ``why`` says why."""
    set_failed(status, reason, f"{_describe_end(attempt)} Not tried again: {why}.", "Failed", attempt.number)


def set_succeeded(status: JobStatusBuilder, number: int, result: TrainerResult) -> None:
    """Show the finished adapter of an attempt."""
    assert result.adapter is not None, "checked by the caller"  # noqa: S101
    status.set(FineTuneJobStatus(phase="Succeeded", adapter=result.adapter))
    text = f"Attempt {number} has put a verified adapter into {result.adapter.uri}."
    status.conditions.set(ConditionType.RUNNING, "False", Reason.VERIFIED, "The training has ended.")
    status.conditions.set(ConditionType.SUCCEEDED, "True", Reason.VERIFIED, text)
    status.conditions.set_ready(Reason.VERIFIED, text)
    status.events.append(EventRecord("Normal", SUCCEEDED, "Finish", text, attempt=number))


def describe_expired(status: FineTuneJobStatus, *, deletes_output: bool) -> EventRecord:
    """Return the last event of an expired job, which says what is left of it."""
    text = f"The job is deleted (spec.ttlSecondsAfterFinished). It ended as {status.phase}"
    adapter = status.adapter
    if adapter is None:
        return EventRecord("Normal", "Expired", "Delete", f"{text} and has no adapter.")
    if deletes_output:
        text = f"{text}. Its adapter {adapter.uri} is deleted too (spec.output.deletionPolicy)."
        return EventRecord("Normal", "Expired", "Delete", text)
    kind = adapter.peft_type if adapter.rank is None else f"{adapter.peft_type} of rank {adapter.rank}"
    base = f"{adapter.base_model}@{adapter.base_revision}" if adapter.base_revision else adapter.base_model
    text = f"{text}. Its adapter stays: {adapter.uri}, digest {adapter.digest}, {kind} for {base}."
    return EventRecord("Normal", "Expired", "Delete", text)


def set_clean_ups(status: JobStatusBuilder, runs: Sequence[Attempt]) -> None:
    """Show the runs of the clean-up."""
    status.set(FineTuneJobStatus(clean_ups=list(runs)))


def set_deleting(status: JobStatusBuilder, message: str) -> None:
    """Show what a deleted job waits for."""
    set_phase(status, "Deleting", Reason.DELETING, message)


def describe_deleted_output(message: str) -> EventRecord:
    """Return the last event of a job whose objects were deleted."""
    return EventRecord("Normal", "OutputDeleted", "CleanUp", message)


def describe_left_output(location: str, reason: str, message: str) -> EventRecord:
    """Return the last event of a job whose objects are left, which says why."""
    text = f"The job is gone, and its objects in {location} are left: {reason}: {end_sentence(message)}"
    return EventRecord("Warning", "OutputLeft", "CleanUp", f"{text} Delete them by hand.")


def _describe_lost(pod: Object) -> str:
    meta, node = pod["metadata"], pod.get("spec", {}).get("nodeName")
    return (
        f"Node {node} does not answer, so it is unknown whether the pod {meta['name']} still runs, and no other one "
        f"takes its place. If the node does not come back, delete it (kubectl delete node {node}). If it has been "
        f"switched off and stays in the cluster, say so (kubectl taint node {node} {OUT_OF_SERVICE})."
    )


def _describe_training(number: int) -> str:
    return f"Attempt {number} trains the adapter."


def _describe_retry(attempt: Attempt, changes: Sequence[Adjustment]) -> str:
    smaller = f" with {', '.join(str(change) for change in changes)}" if changes else ""
    return f"{_describe_end(attempt)} Attempt {attempt.number + 1} follows{smaller}."


def _describe_end(attempt: Attempt) -> str:
    return f"Attempt {attempt.number} ended with {attempt.reason}: {end_sentence(attempt.message or 'no message')}"


def _describe_evaluation(evaluation: EvaluationStatus) -> str:
    """Compare base and adapter in one sentence, then say what the gate decided, if there is one."""
    text = (
        f"The held-out loss is {evaluation.loss:.4g} with the adapter and {evaluation.base_loss:.4g} without it "
        f"({describe_improvement(evaluation.improvement_percent)})."
    )
    if evaluation.step is not None:
        text = f"{text} The weights are those of step {evaluation.step}, the best of those that were evaluated."
    if evaluation.passed is None:
        return text
    return f"{text} The adapter {'passed' if evaluation.passed else 'did not pass'} the gate."
