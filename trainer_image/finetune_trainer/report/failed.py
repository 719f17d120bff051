"""Publish the report of a failed attempt: its reason, last step, curves and settings.

An error or a delay here never changes how the attempt ends. This module does not import torch.
"""

import json
import math
import shutil
import threading
import traceback
from dataclasses import replace
from typing import Any

from finetune_api.finetunejob import ReportStatus
from finetune_api.manifest import REPORT_NAME
from finetune_api.messages import TrainerResult
from finetune_api.reasons import Reason
from finetune_api.timestamps import current_timestamp
from finetune_api.uris import StorageUri
from finetune_artifacts.storage import Storage
from finetune_artifacts.upload import upload_directory
from finetune_trainer.models.base_files import canonical_name
from finetune_trainer.report import fields
from finetune_trainer.report.contents import FailedReport
from finetune_trainer.report.render import render_failed
from finetune_trainer.runtime import libraries
from finetune_trainer.runtime.effective_settings import redact_credentials
from finetune_trainer.runtime.interruption import Interruption
from finetune_trainer.runtime.logs import log
from finetune_trainer.runtime.settings import Settings
from finetune_trainer.session.run import Run

LIMIT_SECONDS = 20.0
"""Seconds that the end of an attempt waits for its report, but never longer than the rest of a grace period."""
METRICS_NAME = "metrics.jsonl"


def publish_failed_report(
    settings: Settings, run: Run, error: BaseException, interruption: Interruption
) -> ReportStatus | None:
    """Write and upload the report of the attempt that ended with ``run.failure``; raises nothing.

    Args:
        settings: The attempt's settings.
        run: The state of the attempt.
        error: The error that ended it; its traceback is shown if the error is unexpected.
        interruption: The request to stop, whose grace period limits the time.

    Returns:
        The report's address; None if there is no report.
    """
    if run.failure is None or not run.owns_output:
        return None  # the files at the output location may be another job's
    seconds = min(LIMIT_SECONDS, interruption.seconds_left()) if interruption.requested else LIMIT_SECONDS
    # Keep the text only: the error itself refers to the frames, and so to the model.
    trace = "".join(traceback.format_exception(error)) if run.failure.reason is Reason.TRAINER_ERROR else ""
    published: list[ReportStatus] = []
    thread = threading.Thread(
        target=_write_and_upload,
        args=(settings, run, run.failure, trace, seconds, published),
        name="failed-report",
        daemon=True,
    )
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        log.warning(
            "the report of the failed attempt was not written within %.0f s: the attempt ends without it", seconds
        )
    return published[0] if published else None


def _write_and_upload(
    settings: Settings, run: Run, failure: TrainerResult, trace: str, seconds: float, published: list[ReportStatus]
) -> None:
    try:
        directory = settings.scratch / "failed"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        report = assemble_failed_report(settings, run, failure, trace)
        (directory / REPORT_NAME).write_text(render_failed(report), encoding="utf-8")
        lines = "".join(json.dumps(_replace_nonfinite(entry)) + "\n" for entry in report.history)
        (directory / METRICS_NAME).write_text(lines, encoding="utf-8")
        output: Storage = settings.output_storage(seconds / 2)
        if run.output is not None:
            output = replace(run.output, patience_seconds=seconds / 2)
        upload_directory(output, settings.failed, directory)
        uri: StorageUri = settings.failed.child(REPORT_NAME)
        log.info("the report of the failed attempt is %s", uri)
        published.append(ReportStatus(uri=str(uri)))
    except BaseException as problem:  # noqa: BLE001 -- the attempt has failed already, and for another reason
        log.warning("the report of the failed attempt could not be written: %s", redact_credentials(str(problem)))


def assemble_failed_report(settings: Settings, run: Run, failure: TrainerResult, trace: str) -> FailedReport:
    """Gather what the report of a failed attempt shows."""
    job, spec, progress = settings.job, settings.job.spec, run.progress
    return FailedReport(
        name=job.metadata.name,
        created_at=current_timestamp(),
        base_model=canonical_name(settings),
        base_revision=settings.model_revision,
        dataset=spec.dataset.uri,
        method=spec.method.name,
        objective=spec.objective,
        reason=str(failure.reason),
        message=redact_credentials(failure.message),
        attempt=run.attempts[-1]["number"] if run.attempts else settings.attempt,
        step=progress.step if progress else None,
        total_steps=progress.total_steps if progress else None,
        resumed_from=run.resumed_from_step,
        checkpoint=run.checkpoint.uri if run.checkpoint else None,
        evaluation=run.evaluation,
        trace=redact_credentials(trace),
        # Leave out transformers' summary at the end, which covers the last attempt only.
        history=[entry for entry in run.history if "train_runtime" not in entry],
        data=fields.describe_shape(run.counts) if run.counts else None,
        parameters=run.parameters,
        settings=fields.list_settings(settings, run),
        attempts=fields.list_attempts(run),
        versions=libraries.library_versions(),
        warnings=list(dict.fromkeys(run.warnings)),
        usage=fields.describe_usage(settings),
    )


def _replace_nonfinite(entry: dict[str, Any]) -> dict[str, Any]:
    """Replace values that JSON does not have (NaN, infinity) by null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in entry.items()
    }
