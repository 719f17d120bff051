"""Run the training loop of one attempt, from a fresh adapter or a checkpoint to the last step."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import datasets  # type: ignore[import-untyped]
from peft.helpers import disable_input_dtype_casting
from transformers import TrainerState

from finetune_api.finetunejob import CheckpointStatus
from finetune_api.reasons import Reason
from finetune_trainer.checkpoints import attempt_history, best_weights, dataset_drift, resuming, run_fingerprint
from finetune_trainer.checkpoints.last_step import LastStepCallback
from finetune_trainer.checkpoints.uploads import CheckpointUploader
from finetune_trainer.data import dataset
from finetune_trainer.distributed import process_group, random_state
from finetune_trainer.evaluation import forgetting, measures
from finetune_trainer.methods import adapted_model
from finetune_trainer.models import performance
from finetune_trainer.runtime.failures import Failure, Preempted, classify
from finetune_trainer.runtime.logs import phase
from finetune_trainer.runtime.phase_clock import CLOCK
from finetune_trainer.session.plan import Plan
from finetune_trainer.session.session import Session
from finetune_trainer.training import divergence, objectives, sharding
from finetune_trainer.training.callback import TrainingCallback
from finetune_trainer.training.trainer import make_trainer
from finetune_trainer.training.watchdog import Watchdog

LAST_UPLOAD_SECONDS = 60.0
"""How long a failed training waits for the upload of the last good checkpoint."""


@dataclass(frozen=True)
class LoopResult:
    """The result of the loop, in addition to the trained weights.

    ``history`` has one entry for each logged step, over all attempts; ``best`` has the best weights, if they are
    chosen.
    """

    history: list[dict[str, Any]]
    last_step: int
    best: best_weights.BestWeights | None


def fit(
    session: Session,
    plan: Plan,
    *,
    model: Any,
    tokenizer: Any,
    rows: datasets.Dataset,
    examples: dataset.Examples,
    fingerprint: run_fingerprint.RunFingerprint,
    resume: resuming.Resume | None,
) -> LoopResult:
    """Train ``model`` in place to the last step, or until the early stop or the end of the pod.

    Raises:
        Preempted: The pod is asked to stop; the checkpoint of the last step is saved.
        Failure: The loss diverged, the loop stalled, or it ended early.
        ArtifactError: A checkpoint could not be uploaded.
    """
    spec, process = session.settings.job.spec, session.process
    best = open_best_weights(session, resume)
    if resume and best and best.stopped:
        resume = replace(resume, stopped=True)
    uploader = start_uploader(session, fingerprint) if process.is_main_process else None
    watchdog = make_watchdog(session)
    callback = TrainingCallback(
        run=session.run,
        reporter=session.reporter,
        interruption=session.interruption,
        uploader=uploader,
        checkpoint_extras=checkpoint_extras(session, examples, fingerprint),
        save_minutes=spec.checkpoint.every_minutes,
        eval_steps=plan.eval_steps,
        evaluate=make_held_out_losses(session, model, examples, on_row=watchdog.beat),
        on_metrics=session.trackers.log_metrics if process.is_main_process else lambda *_: None,
        best_weights=best,
        divergence_watch=divergence.make_divergence_watch(spec, tokenizer),
        watchdog=watchdog,
    )
    last_step = LastStepCallback()
    trainer = make_trainer(session, plan, model=model, tokenizer=tokenizer, rows=rows, callbacks=[last_step, callback])
    try:
        with (
            session.interruption.deferred(),
            phase("training", "train"),
            performance.compile_layers(
                model, on=plan.compile, required=spec.training.compile == "always"
            ) as compilation,
        ):
            if process.world_size > 1:
                random_state.seed_process(spec.training.seed, 0, process.rank)
            watchdog.start()
            if resume:
                resume = evaluate_resumed_step(session, trainer, resume, callback)
            with disable_input_dtype_casting(model, active=adapted_model.needs_no_casts(model, plan.precision)):
                run_loop(trainer, plan, resume)
            watchdog.close()
            stopped = best is not None and best.stopped
            wait_for_uploads(session, uploader, finished=stopped or trainer.state.global_step >= plan.total_steps)
    except Exception as error:
        if classify(error)[0] is Reason.OUT_OF_MEMORY:
            last_step.save(trainer, error)
        # A good checkpoint from before the error may still be uploading.
        if uploader:
            uploader.settle(LAST_UPLOAD_SECONDS)
        raise
    finally:
        watchdog.close()
        if uploader:
            uploader.close()
    if fallback := compilation.describe():
        session.run.derived_settings["compiled"] = "in part"
        session.run.warnings.append(fallback)
    return LoopResult(history=trainer.state.log_history, last_step=trainer.state.global_step, best=best)


def open_best_weights(session: Session, resume: resuming.Resume | None) -> best_weights.BestWeights | None:
    """Return the best weights so far, if the best and not the last ones are published."""
    spec = session.settings.job.spec
    if not best_weights.chooses_best_weights(spec):
        return None
    directory = resume.directory if resume else None
    return best_weights.BestWeights(
        spec.training.early_stopping, session.scratch, directory, keeps=session.process.is_main_process
    )


def make_watchdog(session: Session) -> Watchdog:
    """Make the watchdog that ends the attempt with the reason Stalled."""

    def ask_to_stop(message: str) -> None:
        session.run.stalled = message
        session.interruption.request()

    return Watchdog(ask_to_stop, partial(session.abandon, Reason.STALLED))


def evaluate_resumed_step(
    session: Session, trainer: Any, resume: resuming.Resume, callback: TrainingCallback
) -> resuming.Resume:
    """Run the evaluation that the end of the last attempt interrupted, and add it to the checkpoint's state.

    Raises:
        Preempted: The pod is asked to stop during the evaluation.
    """
    state_file = resume.directory / "trainer_state.json"
    state = TrainerState.load_from_json(str(state_file))
    if not callback.lacks_evaluation(state):
        return resume
    trainer._load_from_checkpoint(str(resume.directory))
    callback.evaluate(state, trainer.model)
    if callback.lacks_evaluation(state):
        session.interruption.request()
        raise Preempted(f"asked to stop; the checkpoint of step {resume.step} is saved")
    state.save_to_json(str(state_file))
    return replace(resume, stopped=callback.stopped)


def run_loop(trainer: Any, plan: Plan, resume: resuming.Resume | None) -> None:
    """Run the Trainer's loop, or only load the weights if an earlier attempt finished it."""
    if resume and (resume.stopped or resume.step >= plan.total_steps):
        trainer._load_from_checkpoint(str(resume.directory))
        trainer.state.global_step = resume.step
        state = json.loads((resume.directory / "trainer_state.json").read_text(encoding="utf-8"))
        trainer.state.log_history = state["log_history"]
        return
    trainer.train(resume_from_checkpoint=str(resume.directory) if resume else None)


def start_uploader(session: Session, fingerprint: run_fingerprint.RunFingerprint) -> CheckpointUploader:
    """Start the thread that uploads checkpoints and tells the operator of each."""
    settings, run = session.settings, session.run

    def report_checkpoint(checkpoint: CheckpointStatus) -> None:
        run.checkpoint = checkpoint
        if report := run.progress_report():
            session.reporter.submit(report)

    return CheckpointUploader(
        session.output,
        settings.checkpoints,
        settings.origin,
        fingerprint,
        settings.job.spec.checkpoint.keep,
        session.scratch / "uploads",
        on_upload=report_checkpoint,
    )


def checkpoint_extras(
    session: Session, examples: dataset.Examples, fingerprint: run_fingerprint.RunFingerprint
) -> dict[str, bytes]:
    """Return further files of each checkpoint, by name; the next attempt checks them before it resumes."""
    environment = resuming.describe_environment(session.process)
    return {
        resuming.ENVIRONMENT_FILE: json.dumps(environment).encode(),
        dataset_drift.DIGESTS_FILE: dataset_drift.encode_digests(examples.digests),
        run_fingerprint.COMPONENTS_FILE: fingerprint.to_bytes(),
        attempt_history.HISTORY_FILE: json.dumps(session.run.attempts).encode(),
    }


class EvaluationCutShort(Exception):  # noqa: N818 -- it is no error
    """End an evaluation because the pod is asked to stop."""


def make_held_out_losses(
    session: Session, model: Any, examples: dataset.Examples, *, on_row: Callable[[], None]
) -> Callable[[], dict[str, float] | None]:
    """Make the function that measures ``eval_loss`` and, with ``evaluation.forgetting``, ``general_loss``.

    It calls ``on_row`` before each forward pass, and returns None if the pod is asked to stop.
    """
    spec = session.settings.job.spec
    measure = measures.make_measure(spec, examples.held_out, examples.held_out_rows)
    if spec.evaluation.recurs and spec.objective in measures.COMPARED_WITH_REFERENCE:
        measure(model)  # before its first step the model is its own reference
    if warning := objectives.check_dropout(spec):
        session.run.warnings.append(warning)
    general = examples.forgetting_text if spec.evaluation.forgetting else []

    def before_forward(*_: Any) -> None:
        on_row()
        if process_group.any_rank(session.interruption.requested):
            raise EvaluationCutShort

    def held_out_losses() -> dict[str, float] | None:
        hook = model.register_forward_pre_hook(before_forward)
        try:
            general_loss = forgetting.measure_loss(model, general)
            loss = measure(model).loss
        except EvaluationCutShort:
            return None
        finally:
            hook.remove()
            sharding.free_gathered_layers(model)
        return {"eval_loss": loss} | ({} if general_loss is None else {"general_loss": general_loss})

    return held_out_losses


def wait_for_uploads(session: Session, uploader: CheckpointUploader | None, *, finished: bool) -> None:
    """Wait until the last checkpoint is uploaded; only for the grace period if the pod is asked to stop.

    Raises:
        Preempted: The pod is asked to stop.
        Failure: STALLED: the watchdog asked the loop to stop. TRAINER_ERROR: the loop ended before its last step for
            an unknown reason.
    """
    interruption = session.interruption
    with CLOCK.spend("checkpoint"):
        while uploader and not interruption.requested and not uploader.wait(seconds=1):
            pass
        uploaded = not interruption.requested or not uploader or uploader.wait(seconds=interruption.seconds_left())
    if interruption.requested:
        step = session.run.progress.step if session.run.progress else 0
        outcome = "is saved" if uploaded else "could not be uploaded within the grace period"
        if session.run.stalled:
            raise Failure(Reason.STALLED, f"{session.run.stalled}; then the checkpoint of step {step} {outcome}")
        raise Preempted(f"asked to stop; the checkpoint of step {step} {outcome}")
    if not finished:
        raise Failure(Reason.TRAINER_ERROR, "the training loop ended before its last step")
