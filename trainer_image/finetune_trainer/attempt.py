"""Make one attempt at a job: check it before importing torch, fetch files, and always write a result."""

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace

from finetune_api import ladder
from finetune_api.messages import TrainerResult
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_artifacts.errors import ArtifactError
from finetune_artifacts.fence import claim_storage
from finetune_artifacts.s3 import S3Storage
from finetune_artifacts.storage import Storage
from finetune_trainer.checkpoints import comparison_cleanup
from finetune_trainer.data.sources import Inputs
from finetune_trainer.publish.finished import find_finished_adapter
from finetune_trainer.report import failed
from finetune_trainer.runtime import result
from finetune_trainer.runtime.failures import Failure, Preempted, classify
from finetune_trainer.runtime.interruption import Interruption
from finetune_trainer.runtime.logs import log, phase
from finetune_trainer.runtime.phase_clock import CLOCK
from finetune_trainer.runtime.settings import Settings
from finetune_trainer.session import tracking
from finetune_trainer.session.fetch import fetch_inputs
from finetune_trainer.session.progress import Reporter
from finetune_trainer.session.run import Run
from finetune_trainer.session.session import Session
from finetune_trainer.workers import CAUSE_SECONDS, Workers

PATIENCE_SECONDS = 300.0
"""How long an unavailable storage is retried before the attempt fails."""


def main(settings: Settings) -> int:
    """Make one attempt, write its result to the termination log, and return the exit code."""
    run = Run()

    def exit_preempted() -> None:
        outcome = with_usage(run.failure or run.result(Reason.PREEMPTED, "asked to stop"), settings)
        result.write(outcome, settings.termination_log)
        # the signal may have come in the middle of a log line, whose stream must not be entered twice
        os.write(sys.stdout.fileno(), b"asked to stop before there was progress to save: ending now\n")
        os._exit(exit_code(outcome))

    def exit_process(outcome: TrainerResult) -> None:
        result.write(outcome, settings.termination_log)
        os._exit(exit_code(outcome))

    interruption = Interruption(settings.job.spec.pod_template.termination_grace_period_seconds, exit_preempted)
    interruption.install()
    reporter = Reporter(settings.report_url, settings.token_file)
    outcome = run_attempt(settings, run, interruption, reporter, exit_process)
    reporter.close()
    result.write(outcome, settings.termination_log)
    return exit_code(outcome)


def exit_code(outcome: TrainerResult) -> int:
    """Return the exit code for the result's reason."""
    if outcome.reason == "Succeeded":
        return 0
    return EXIT_CODES.get(Reason(outcome.reason), EXIT_CODES[Reason.TRAINER_ERROR])


def with_usage(outcome: TrainerResult, settings: Settings) -> TrainerResult:
    """Return the result with the GPU time of this process so far."""
    return outcome.model_copy(update={"usage": CLOCK.measure_usage(settings.job.spec.resources.gpus_per_node)})


def run_attempt(
    settings: Settings,
    run: Run,
    interruption: Interruption,
    reporter: Reporter,
    exit_process: Callable[[TrainerResult], None],
) -> TrainerResult:
    """Train the job's adapter and return how it ended; raises nothing.

    A job that runs out of memory is made smaller and goes on in this process, with the files that are here already.

    Args:
        settings: The attempt's settings.
        run: Filled with what the attempt achieves.
        interruption: The request to stop.
        reporter: Tells the operator of the progress.
        exit_process: Ends this process while it waits for another one that has failed; must not return.
    """
    run.failure = run.report = None
    inputs: list[Inputs] = []
    steps = settings.job.spec.failure_policy.retries.on_out_of_memory
    while True:
        outcome, smaller = train_once(
            settings, run, interruption, reporter, exit_process, inputs, may_continue=steps > 0
        )
        if smaller is None:
            return with_usage(outcome, settings)
        settings, steps = smaller, steps - 1
        free_device()


def train_once(
    settings: Settings,
    run: Run,
    interruption: Interruption,
    reporter: Reporter,
    exit_process: Callable[[TrainerResult], None],
    inputs: list[Inputs],
    *,
    may_continue: bool,
) -> tuple[TrainerResult, Settings | None]:
    """Train once; return the result and, after a lack of memory, smaller settings to continue with.

    Args:
        settings: The attempt's settings; smaller ones after a lack of memory.
        run: Filled with what the attempt achieves.
        interruption: The request to stop.
        reporter: Tells the operator of the progress.
        exit_process: Ends this process; must not return.
        inputs: Receives the fetched inputs; nothing is fetched if it has them already.
        may_continue: Whether a lack of memory is answered with smaller settings.
    """
    run.adjustments, run.choice = settings.adjustments, settings.choice

    def fail_attempt(reason: Reason, message: str) -> None:
        log.error("%s: %s", reason, message)
        run.failure = run.result(reason, message)
        run.report = failed.publish_failed_report(settings, run, Failure(reason, message), interruption)
        exit_process(with_usage(run.failure.model_copy(update={"report": run.report}), settings))

    workers = Workers(fail_attempt, interruption)
    try:
        return fetch_and_train(settings, run, interruption, reporter, workers, fail_attempt, inputs), None
    except BaseException as error:  # noqa: BLE001 -- every end of an attempt has a reason
        reason, message = explain(error, workers)
        smaller = lower_memory(settings, run, reason) if may_continue and not interruption.requested else None
        outcome = run.result(reason, message)
        if smaller is None and reason is not Reason.PREEMPTED:
            run.failure = outcome
            run.report = run.report or failed.publish_failed_report(settings, run, error, interruption)
        return outcome.model_copy(update={"report": run.report}), smaller
    finally:
        workers.close()


def explain(error: BaseException, workers: Workers) -> tuple[Reason, str]:
    """Log what ended the training, and return its reason and message."""
    reason, message = classify(error)
    if reason is Reason.NCCL_ERROR and (cause := workers.failure(CAUSE_SECONDS)):
        reason, message = cause
    if reason is Reason.TRAINER_ERROR:
        log.exception("the trainer failed")
    elif isinstance(error, Preempted):
        log.info("%s", message)
    else:
        log.error("%s: %s", reason, message)
    return reason, message


def lower_memory(settings: Settings, run: Run, reason: Reason) -> Settings | None:
    """Return settings that need less memory than this run; None if nothing can be reduced.

    It is also None if the run failed for another reason than memory. The settings include what the run chose for fields
    that the job leaves unset.
    """
    settings = settings.with_choice(run.choice) if run.choice else settings
    spec = settings.job.spec
    smaller = ladder.reduce_once(spec) if ladder.needs_less_memory(spec, reason) else None
    if smaller is None:
        return None
    changes = ladder.list_adjustments(spec, smaller)
    log.warning("going on in this process with %s", ", ".join(str(change) for change in changes))
    adjustments = tuple(ladder.add_adjustments(settings.adjustments, changes))
    return replace(settings, job=settings.job.model_copy(update={"spec": smaller}), adjustments=adjustments)


def free_device() -> None:
    """Free the device memory that the failed training still holds."""
    from finetune_trainer.models import device

    device.free_memory()


def fetch_and_train(
    settings: Settings,
    run: Run,
    interruption: Interruption,
    reporter: Reporter,
    workers: Workers,
    fail_attempt: Callable[[Reason, str], None],
    fetched: list[Inputs],
) -> TrainerResult:
    """Fetch the inputs while torch is imported, start the other processes, and follow the recipe.

    ``fetched`` receives the inputs; nothing is fetched if it has them already.

    Raises:
        Preempted: The pod is asked to stop.
        Failure: The attempt cannot succeed.
        ArtifactError: The storage fails or refuses.
    """
    job = settings.job
    log.info(
        "FineTuneJob %s/%s, pod %s: %s on %s",
        job.metadata.namespace,
        job.metadata.name,
        platform.node(),
        job.spec.method.name,
        job.spec.model.uri,
    )
    tracking.check(settings, installed=True)
    output = settings.output_storage(PATIENCE_SECONDS)
    if stored_result := find_finished_adapter(settings, output):
        comparison_cleanup.delete_comparison_files(settings, output)
        return stored_result
    output = claim_output(settings, run, output)
    if settings.expects_gpus:
        with phase("looking for the GPUs", "import"):
            from finetune_trainer.models.visible_gpus import require_gpus
        require_gpus(job.spec.resources)
    run.owns_output = True
    with phase("preparing scratch space"):
        shutil.rmtree(settings.scratch / "run", ignore_errors=True)
        (settings.scratch / "run").mkdir(parents=True)
    fetched += [] if fetched else [fetch(settings)]
    from finetune_trainer import recipe

    inputs = fetched[0]
    trackers, succeeded = tracking.Trackers(settings), False
    workers.start(settings, inputs, PATIENCE_SECONDS)
    try:
        session = Session(
            settings,
            inputs,
            output,
            run,
            interruption,
            reporter,
            trackers,
            settings.process,
            fail_attempt,
            workers.stop_watching,
        )
        outcome = recipe.train_adapter(session)
        succeeded = True
        release_output(run)
        return outcome
    finally:
        # what is left of a grace period is needed to write the result
        seconds = interruption.seconds_left() if interruption.requested else tracking.CLOSE_SECONDS
        trackers.close(succeeded=succeeded, timeout=seconds)


def fetch(settings: Settings) -> Inputs:
    """Fetch the inputs while torch is imported. Raises what ``fetch_inputs`` raises."""
    with fetch_inputs(settings, PATIENCE_SECONDS) as wait_for_inputs:
        with phase("importing torch, transformers, peft and trl", "import"):
            from finetune_trainer import recipe  # noqa: F401 -- the next one is instant
        return wait_for_inputs()


def claim_output(settings: Settings, run: Run, output: Storage) -> Storage:
    """Return the output as a storage to which no other attempt at this job can write from now on.

    A directory, and any storage on a workstation, is returned unchanged: there only one attempt runs at a time.

    Raises:
        ArtifactError: SUPERSEDED, if a later attempt has begun; or the storage fails or refuses.
    """
    if settings.workstation or not isinstance(output, S3Storage):
        return output
    run.output = claim_storage(output, settings.claim, settings.attempt)
    return run.output


def release_output(run: Run) -> None:
    """Delete the claim once the job is done; a refusal is only logged."""
    try:
        if run.output is not None:
            run.output.release_claim()
    except ArtifactError as error:
        log.warning("the claim is no longer needed and could not be deleted: %s", error)
