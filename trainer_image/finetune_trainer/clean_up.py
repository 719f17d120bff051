"""Delete what a job wrote into its storage, for a deleted FineTuneJob with ``deletionPolicy: Delete``.

It needs no torch, and does not know why the job is deleted. A second clean-up deletes what the first one left.
"""

from finetune_api.messages import CleanUpResult
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_artifacts.errors import ArtifactError
from finetune_artifacts.ownership import delete_all, find_objects_of
from finetune_trainer.runtime import result
from finetune_trainer.runtime.logs import log, phase
from finetune_trainer.runtime.settings import Settings

PATIENCE_SECONDS = 45.0
"""How long an unavailable service is retried before the clean-up fails."""
VERSIONS_STAY = "The bucket keeps old versions, which its lifecycle rules remove."
SUCCEEDED = "Succeeded"
FINAL = (Reason.BUCKET_NOT_FOUND, Reason.OUTPUT_ACCESS_DENIED)
"""Reasons for which another clean-up would fail as well."""


def main(settings: Settings) -> int:
    """Delete the job's objects, write the result to the termination log, and return the exit code."""
    with phase(f"deleting what FineTuneJob {settings.job.metadata.namespace}/{settings.job.metadata.name} wrote"):
        outcome = clean_up(settings)
    log.info("%s: %s", outcome.reason, outcome.message)
    result.write(outcome, settings.termination_log)
    return 0 if outcome.reason == SUCCEEDED else EXIT_CODES.get(outcome.reason, 1)


def clean_up(settings: Settings, patience_seconds: float = PATIENCE_SECONDS) -> CleanUpResult:
    """Delete the job's objects, and return what was deleted and what is left; raises nothing."""
    try:
        storage = settings.output_storage(patience_seconds)
        for claim in (settings.claim, settings.merge_claim):
            storage.delete(claim)  # a pod that still runs cannot write without its claim
        objects = find_objects_of(
            storage,
            settings.written_directories,
            settings.origin.uid,
            exclusive=settings.job.spec.output.s3.prefix is None,
        )
    except ArtifactError as error:
        return CleanUpResult(reason=_find_reason(error), message=error.message)
    deletion = delete_all(storage, objects)
    text = f"{deletion.deleted} objects were deleted from {settings.output}."
    if deletion.keeps_versions:
        text = f"{text} {VERSIONS_STAY}"
    if deletion.error is None:
        return CleanUpResult(reason=SUCCEEDED, message=text)
    return CleanUpResult(
        reason=_find_reason(deletion.error), message=f"{text} {deletion.left} are left: {deletion.error.message}"
    )


def _find_reason(error: ArtifactError) -> Reason:
    return error.reason if error.reason in FINAL else Reason.CLEAN_UP_FAILED
