"""``report.html`` of an attempt that failed: why, how far it came, the curves up to there and every setting. Knows no torch.

Whatever goes wrong with it, and however long it takes, the attempt ends with its own reason.
"""

import json
import math
import shutil
import threading
import traceback
from typing import Any

from finetune_api.finetunejob import ReportStatus
from finetune_api.manifest import REPORT_NAME
from finetune_api.messages import TrainerResult
from finetune_api.reasons import Reason
from finetune_api.timestamps import current_timestamp
from finetune_api.uris import S3Uri
from finetune_artifacts.upload import upload_directory
from finetune_trainer.models.base_files import canonical_name
from finetune_trainer.report import fields
from finetune_trainer.report.contents import Failed
from finetune_trainer.report.render import render_failed
from finetune_trainer.runtime import libraries
from finetune_trainer.runtime.effective_settings import redact_credentials
from finetune_trainer.runtime.interruption import Interruption
from finetune_trainer.runtime.logs import log
from finetune_trainer.runtime.settings import Settings
from finetune_trainer.session.run import Run

LIMIT_SECONDS = 20.0
"""How long the end of an attempt waits for its report; what is left of a grace period, if that is less."""
METRICS_NAME = "metrics.jsonl"


def publish_failed_report(
    settings: Settings, run: Run, error: BaseException, interruption: Interruption
) -> ReportStatus | None:
    """Write and upload the report of an attempt that ended as ``run.ended`` says; where it is, or None if there is none. Raises nothing."""
    if run.ended is None or not run.begun:
        return None  # what lies at the output's place may be another job's
    seconds = min(LIMIT_SECONDS, interruption.seconds_left()) if interruption.requested else LIMIT_SECONDS
    # of the error only the words: it holds the frames in which the model is
    trace = "".join(traceback.format_exception(error)) if run.ended.reason is Reason.TRAINER_ERROR else ""
    left: list[ReportStatus] = []
    thread = threading.Thread(
        target=_leave, args=(settings, run, run.ended, trace, seconds, left), name="failed-report", daemon=True
    )
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        log.warning("the report of the failed attempt is not written after %.0f s: going on without it", seconds)
    return left[0] if left else None


def _leave(
    settings: Settings, run: Run, ended: TrainerResult, trace: str, seconds: float, left: list[ReportStatus]
) -> None:
    try:
        directory = settings.scratch / "failed"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        report = assemble_failed_report(settings, run, ended, trace)
        (directory / REPORT_NAME).write_text(render_failed(report), encoding="utf-8")
        lines = "".join(json.dumps(_finite(entry)) + "\n" for entry in report.history)
        (directory / METRICS_NAME).write_text(lines, encoding="utf-8")
        upload_directory(settings.output_place(seconds / 2), settings.failed, directory)
        place: S3Uri = settings.failed.child(REPORT_NAME)
        log.info("the report of the failed attempt is %s", place)
        left.append(ReportStatus(uri=str(place)))
    except BaseException as problem:  # noqa: BLE001 -- the attempt has failed already, and for another reason
        log.warning("the report of the failed attempt could not be left: %s", redact_credentials(str(problem)))


def assemble_failed_report(settings: Settings, run: Run, ended: TrainerResult, trace: str) -> Failed:
    """All that there is to say of it."""
    job, spec, progress = settings.job, settings.job.spec, run.progress
    return Failed(
        name=job.metadata.name,
        created_at=current_timestamp(),
        base_model=canonical_name(settings),
        base_revision=settings.model_revision,
        dataset=spec.dataset.uri,
        method=spec.method.name,
        objective=spec.objective,
        reason=str(ended.reason),
        message=redact_credentials(ended.message),
        attempt=run.attempts[-1]["number"] if run.attempts else settings.attempt,
        step=progress.step if progress else None,
        total_steps=progress.total_steps if progress else None,
        resumed_from=run.resumed_from_step,
        checkpoint=run.checkpoint.uri if run.checkpoint else None,
        evaluation=run.evaluation,
        trace=redact_credentials(trace),
        # transformers' summary at the end speaks of the last attempt alone
        history=[entry for entry in run.history if "train_runtime" not in entry],
        data=fields.describe_shape(run.counts) if run.counts else None,
        parameters=run.parameters,
        settings=fields.list_settings(settings, run),
        attempts=fields.list_attempts(run),
        versions=libraries.library_versions(),
        warnings=list(dict.fromkeys(run.warnings)),
    )


def _finite(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of the history as JSON knows it: what is no number is null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in entry.items()
    }
