"""One attempt at a job: checked before torch is imported, files fetched while it is, and a result however it ends."""

import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from finetune_api.finetunejob import ReportStatus
from finetune_api.manifest import MANIFEST_NAME, REPORT_NAME, AdapterManifest
from finetune_api.messages import TrainerResult
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_artifacts.digests import digest_of
from finetune_artifacts.objects import head, read_object
from finetune_artifacts.store import Place
from finetune_trainer.checkpoints import comparison_cleanup
from finetune_trainer.data import forgetting_text, sources
from finetune_trainer.data.sources import DownloadedAdapter, Inputs, LocalData
from finetune_trainer.evaluation import gate
from finetune_trainer.methods import starting_adapter
from finetune_trainer.models import base_files
from finetune_trainer.report import failed
from finetune_trainer.runtime import result
from finetune_trainer.runtime.failures import Failure, Preempted, classify
from finetune_trainer.runtime.interruption import Interruption
from finetune_trainer.runtime.logs import log, phase
from finetune_trainer.runtime.settings import Settings
from finetune_trainer.session import tracking
from finetune_trainer.session.progress import Reporter
from finetune_trainer.session.run import Run
from finetune_trainer.session.session import Session
from finetune_trainer.workers import ANSWER_SECONDS, Workers

PATIENCE_SECONDS = 300.0
"""How long an S3 service that is away only costs time."""


def main(settings: Settings) -> int:
    """Make one attempt, leave its result in the termination log, and return the exit code."""
    run = Run()

    def leave() -> None:
        outcome = run.ended or run.result(Reason.PREEMPTED, "asked to stop")
        result.write(outcome, settings.termination_log)
        # The signal may have come in the middle of a line of the log, whose stream must not be entered twice.
        os.write(sys.stdout.fileno(), b"asked to stop, and nothing would be lost: ending now\n")
        os._exit(exit_code(outcome))

    def abandon(outcome: TrainerResult) -> None:
        result.write(outcome, settings.termination_log)
        os._exit(exit_code(outcome))

    interruption = Interruption(settings.job.spec.pod_template.termination_grace_period_seconds, leave)
    interruption.install()
    reporter = Reporter(settings.report_url, settings.token_file)
    outcome = attempt(settings, run, interruption, reporter, abandon)
    reporter.close()
    result.write(outcome, settings.termination_log)
    return exit_code(outcome)


def exit_code(outcome: TrainerResult) -> int:
    """The exit code that says the result's reason."""
    return (
        0 if outcome.reason == "Succeeded" else EXIT_CODES.get(Reason(outcome.reason), EXIT_CODES[Reason.TRAINER_ERROR])
    )


def attempt(
    settings: Settings,
    run: Run,
    interruption: Interruption,
    reporter: Reporter,
    abandon: Callable[[TrainerResult], None],
) -> TrainerResult:
    """Train, and say how it ended; raises nothing. ``abandon`` ends this process when it waits for another one that has failed; it must not return."""
    run.ended = run.page = None

    def give_up(reason: Reason, message: str) -> None:
        log.error("%s: %s", reason, message)
        run.ended = run.result(reason, message)
        run.page = failed.publish_failed_report(settings, run, Failure(reason, message), interruption)
        abandon(run.ended.model_copy(update={"report": run.page}))

    workers = Workers(give_up, interruption)
    try:
        return run_attempt(settings, run, interruption, reporter, workers)
    except BaseException as error:  # noqa: BLE001 -- every end of an attempt has a reason
        reason, message = classify(error)
        if reason is Reason.NCCL_ERROR and (cause := workers.failure(ANSWER_SECONDS)):
            reason, message = cause
        if reason is Reason.TRAINER_ERROR:
            log.exception("the trainer failed")
        elif isinstance(error, Preempted):
            log.info("%s", message)
        else:
            log.error("%s: %s", reason, message)
        ended = run.result(reason, message)
        if reason is not Reason.PREEMPTED:
            run.ended = ended
            run.page = run.page or failed.publish_failed_report(settings, run, error, interruption)
        return ended.model_copy(update={"report": run.page})
    finally:
        workers.close()


def run_attempt(
    settings: Settings, run: Run, interruption: Interruption, reporter: Reporter, workers: Workers
) -> TrainerResult:
    """From the job to the adapter in S3. Raises what ends it early."""
    job = settings.job
    log.info(
        "FineTuneJob %s/%s, attempt %d: %s on %s",
        job.metadata.namespace,
        job.metadata.name,
        settings.attempt,
        job.spec.method.name,
        job.spec.model.uri,
    )
    tracking.check(settings, installed=True)
    output = settings.output_place(PATIENCE_SECONDS)
    if finished := finished_adapter(settings, output):
        comparison_cleanup.delete_comparison_files(settings, output)
        return finished
    run.begun = True
    with phase("preparing scratch space"):
        shutil.rmtree(settings.scratch / "run", ignore_errors=True)
        (settings.scratch / "run").mkdir(parents=True)
    pool = ThreadPoolExecutor(4, thread_name_prefix="fetch")
    try:
        adapter = pool.submit(fetch_adapter, settings)
        text = pool.submit(forgetting_text.download, settings, PATIENCE_SECONDS)
        fetching = pool.submit(fetch_model, settings), pool.submit(fetch_data, settings)
        with phase("importing torch, transformers, peft and trl"):
            from finetune_trainer import recipe
        inputs = replace(gather(*fetching), adapter=adapter.result(), general=text.result())
        if inputs.adapter and (
            refusal := starting_adapter.compare_base_revisions(inputs.adapter.base_revision, inputs.model_commit)
        ):
            raise refusal
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    trackers, succeeded = tracking.Trackers(settings), False
    workers.start(settings, inputs, PATIENCE_SECONDS)
    try:
        session = Session(settings, inputs, output, run, interruption, reporter, trackers, settings.process)
        outcome = recipe.train_adapter(session)
        succeeded = True
        return outcome
    finally:
        # what is left of a grace period is for the result
        within = interruption.seconds_left() if interruption.requested else tracking.FAREWELL_SECONDS
        trackers.close(succeeded=succeeded, within=within)


def finished_adapter(settings: Settings, output: Place) -> TrainerResult | None:
    """The success of an earlier attempt at this very job, which was cut off after its manifest was written.

    Raises Failure(OUTPUT_EXISTS) if the adapter there is another job's.
    """
    place = settings.adapter.child(MANIFEST_NAME)
    if head(output, place) is None:
        return None
    content = read_object(output, place)
    try:
        manifest = AdapterManifest.model_validate_json(content)
    except ValidationError:
        manifest = None
    if manifest is None or manifest.job != settings.origin:
        owner = f"FineTuneJob {manifest.job.namespace}/{manifest.job.name}" if manifest else "something else"
        raise Failure(
            Reason.OUTPUT_EXISTS,
            f"{place} is there already, of {owner}: choose another one, or delete what lies there",
            settings.output_field,
        )
    refuse_unanswered(settings, manifest)
    log.info("the adapter is finished already: %s", settings.adapter)
    return TrainerResult(
        reason="Succeeded",
        message="the adapter was finished by an earlier attempt",
        evaluation=manifest.evaluation,
        adapter=manifest.status(str(settings.adapter), digest_of(content)),
        report=next(
            (ReportStatus(uri=str(settings.adapter.child(f.path))) for f in manifest.files if f.path == REPORT_NAME),
            None,
        ),
    )


def refuse_unanswered(settings: Settings, manifest: AdapterManifest) -> None:
    """Raise Failure if a finished adapter is not all that its file asks for: a workstation's file may have been changed since, in what does not decide the weights."""
    output, found = settings.job.spec.output, settings.adapter
    refusal = manifest.evaluation and gate.apply_gate(settings.job.spec.evaluation.gate, manifest.evaluation)[1]
    if refusal:
        raise Failure(Reason.GATE_FAILED, f"{refusal}: {found} was published before there was this gate", gate.FIELD)
    evaluation = settings.job.spec.evaluation
    for field, asked, there in (
        (
            "spec.evaluation.compareWithFull",
            evaluation.compare_with_full,
            manifest.evaluation and manifest.evaluation.comparison,
        ),
        ("spec.output.mergedModel", output.merged_model, manifest.merged),
        ("spec.output.hub", output.hub, manifest.hub),
    ):
        if asked and not there:
            raise Failure(
                Reason.OUTPUT_EXISTS,
                f"{found} was finished without it: take it away, or choose another {settings.output_field}",
                field,
            )


def fetch_model(settings: Settings) -> tuple[Path, str | None]:
    """The base model's directory, and the commit of a hub model."""
    shown = 0

    def report(done: int, total: int) -> None:
        nonlocal shown
        if total and done * 10 // total > shown:
            shown = done * 10 // total
            log.info("fetching the model: %d of %d MB", done // 1_000_000, total // 1_000_000)

    return base_files.download_base(settings, settings.scratch / "model", PATIENCE_SECONDS, report)


def fetch_adapter(settings: Settings) -> DownloadedAdapter | None:
    """The adapter that the training goes on from, if there is one."""
    found = starting_adapter.find_adapter(settings, PATIENCE_SECONDS)
    if found is None:
        return None
    directory = settings.scratch / "starting-adapter" / found.digest.removeprefix("sha256:")
    fetched = starting_adapter.download(settings, found, directory, PATIENCE_SECONDS)
    return DownloadedAdapter(fetched, found.digest, found.manifest.base_revision)


def fetch_data(settings: Settings) -> tuple[LocalData, LocalData | None]:
    """The files of the dataset and, if it has files of its own, of the held-out data."""
    training, held_out = sources.find_splits(settings.job.spec.dataset)
    directory = settings.scratch / "data"
    fetched = sources.download(settings, training, directory / "dataset", PATIENCE_SECONDS)
    return fetched, sources.download(
        settings, held_out, directory / "validation", PATIENCE_SECONDS
    ) if held_out else None


def gather(model: "Future[tuple[Path, str | None]]", data: "Future[tuple[LocalData, LocalData | None]]") -> Inputs:
    """Wait for both; raises what either failed with."""
    with phase("waiting for the model and the data"):
        dataset, validation = data.result()
        directory, commit = model.result()
    return Inputs(directory, commit, dataset, validation)
