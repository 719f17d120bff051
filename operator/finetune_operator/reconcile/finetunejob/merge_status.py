"""Set the fields and conditions of a FineTuneJob's status about the merge. Pure.

The adapter is ready meanwhile, and a failed merge does not change that.
"""

from collections.abc import Sequence

from finetune_api.conditions import ConditionType
from finetune_api.finetunejob import Attempt, FineTuneJobSpec, FineTuneJobStatus, MergedModelStatus
from finetune_api.limits import end_sentence
from finetune_api.reasons import USER_ERRORS, Reason
from finetune_operator.policies.history import trim
from finetune_operator.policies.outcome import Outcome, Running
from finetune_operator.policies.waiting import Waiting
from finetune_operator.reconcile.finetunejob.model import JobStatusBuilder

MERGING = "A pod without a GPU merges the finished adapter into its base."
AGAIN = "To try again, raise spec.failurePolicy.retries.onError."


def set_merge_due(status: JobStatusBuilder, spec: FineTuneJobSpec) -> None:
    """Show that the adapter, which has just been finished, is to be merged, if the spec asks for it."""
    if spec.output.merged_model:
        status.conditions.set(ConditionType.MERGED, "Unknown", Reason.MERGING, MERGING)


def set_merges(status: JobStatusBuilder, merges: Sequence[Attempt]) -> None:
    """Show the runs of the merge, the newest ones if there are many."""
    status.set(FineTuneJobStatus(merges=trim(merges)))


def set_merge_progress(status: JobStatusBuilder, outcome: Outcome | None) -> None:
    """Show that a merge waits or runs. A pod that is merely starting gets no message of its own."""
    reason, message = Reason.MERGING, MERGING
    if isinstance(outcome, Waiting) and outcome.reason is not Reason.PENDING:
        reason, message = outcome.reason, outcome.message
    elif isinstance(outcome, Running) and outcome.lost:
        name = outcome.pod["metadata"]["name"]
        reason, message = Reason.NODE_LOST, f"The node of its pod {name} does not answer: delete the node, or the pod."
    status.conditions.set(ConditionType.MERGED, "Unknown", reason, message)


def set_merge_repeated(status: JobStatusBuilder, reason: str, message: str) -> None:
    """Show that a merge failed and another one follows."""
    text = f"The merge failed and is repeated: {reason}: {message}"
    status.conditions.set(ConditionType.MERGED, "Unknown", Reason.RETRYING, text)


def set_merge_suspended(status: JobStatusBuilder, message: str) -> None:
    """Show that no merge runs because the job is suspended."""
    text = f"{message} The adapter is finished; it is merged when spec.suspend is false."
    status.conditions.set(ConditionType.MERGED, "Unknown", Reason.SUSPENDED, text)


def set_merge_blocked(status: JobStatusBuilder, message: str) -> None:
    """Show that the merge's Job cannot be created now, for a reason outside of the spec."""
    status.conditions.set(ConditionType.MERGED, "Unknown", Reason.PENDING, message)


def set_merge_failed(status: JobStatusBuilder, reason: str, message: str, why: str = "") -> None:
    """Show that there is no merged model; ``why`` says why it is not tried again."""
    text = end_sentence(message)
    if why and reason not in USER_ERRORS:
        text = f"{text} Not tried again: {why}. {AGAIN}"
    status.conditions.set(ConditionType.MERGED, "False", reason, f"{text} The adapter is not affected.")


def set_merged(status: JobStatusBuilder, model: MergedModelStatus) -> None:
    """Show the merged model."""
    status.set(FineTuneJobStatus(merged_model=model))
    text = f"Base and adapter are one model in {model.uri}."
    status.conditions.set(ConditionType.MERGED, "True", Reason.MERGED, text)
