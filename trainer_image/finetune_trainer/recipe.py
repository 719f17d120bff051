"""Train an adapter, from the top down: prepare, train, verify, compare, publish. Everything here may import torch."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date as date_type
from functools import partial
from typing import Any

import datasets  # type: ignore[import-untyped]
import torch
import transformers

from finetune_api.messages import TrainerResult
from finetune_api.reasons import Reason
from finetune_trainer import final_evaluation, full_comparison
from finetune_trainer.checkpoints import comparison_cleanup, dataset_drift, template_date
from finetune_trainer.data import dataset, token_cache
from finetune_trainer.data.chat_template import find_training_template
from finetune_trainer.data.tokenizer import load_tokenizer, make_encoding
from finetune_trainer.distributed import process_group
from finetune_trainer.evaluation import forgetting, gate, measures, samples, verification
from finetune_trainer.models import device, loading
from finetune_trainer.publish import publishing, trained_adapter
from finetune_trainer.runtime.background import start_thread
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import phase
from finetune_trainer.runtime.phase_clock import CLOCK
from finetune_trainer.session.session import Session
from finetune_trainer.training import choice as training_choice
from finetune_trainer.training import model as training_model
from finetune_trainer.training import objectives
from finetune_trainer.training.train import BASE_CHANGED, train_model


@dataclass(frozen=True)
class PreparedTraining:
    """The inputs of a training. ``base`` waits for the base model and returns it; it can be called once."""

    tokenizer: Any
    examples: dataset.Examples
    base: Callable[[], Any]


@dataclass(frozen=True)
class VerifiedAdapter:
    """The verification of an adapter. ``refusal`` says why the gate keeps it from being published, or is None."""

    verification: verification.Verification
    measure: measures.Measure
    prompts: list[samples.Prompt]
    refusal: str | None


def train_adapter(session: Session) -> TrainerResult:
    """Train, verify and publish the adapter of a job.

    Each process of a training calls this. After the last step all but the main process only help it to evaluate.

    Raises:
        Preempted: The pod is asked to stop.
        Failure: The attempt cannot succeed.
        ArtifactError: The storage fails or refuses.
    """
    prepared = prepare(session)
    session, prepared = fill_unset_training(session, prepared)
    adapter = train(session, prepared)
    if adapter is None:
        final_evaluation.score_in_worker(session, prepared.tokenizer, prepared.examples)
        return TrainerResult(reason="Succeeded", message=f"{session.process.name} has done its part")
    verified = verify(session, prepared, adapter)
    verified = compare_with_full(session, prepared, adapter, verified)
    return publish(session, prepared, adapter, verified)


def prepare(session: Session) -> PreparedTraining:
    """Tokenize the dataset while the base model loads in a thread of its own."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    quiet_libraries()
    process, model = session.process, session.settings.job.spec.model
    with process_group.main_process_first(process, session.scratch):
        date = process_group.broadcast(None) if process.local_rank else None
        tokenizer = load_tokenizer(session.inputs.model, trust_remote_code=model.trust_remote_code)
        base = start_thread(partial(training_model.load_base, session, tokenizer))
        with phase("preparing the data while the model loads", "tokenize"):
            examples = prepare_data(session, tokenizer, date)
    if not process.local_rank:
        process_group.broadcast(session.run.template_date)
    return PreparedTraining(tokenizer=tokenizer, examples=examples, base=base)


def prepare_data(session: Session, tokenizer: Any, date: str | None) -> dataset.Examples:
    """Tokenize the dataset, and record its counts and warnings in the run.

    Args:
        session: The attempt.
        tokenizer: Its chat template is pinned to the date of the first attempt, if it writes a date.
        date: The date that the main process of the node pinned, as ISO 8601; None in that process.
    """
    settings, spec, run = session.settings, session.settings.job.spec, session.run
    training_template = find_training_template(tokenizer)  # TRL knows the template without a pinned date
    run.template_date, date_warnings = template_date.pin_template_date(
        tokenizer, session.output, settings.checkpoints, settings.origin, date
    )
    if training_template and run.template_date:
        training_template = template_date.write_date(training_template, date_type.fromisoformat(run.template_date))
    request = token_cache.DatasetRequest(
        spec.dataset,
        spec.objective,
        spec.training.max_length,
        spec.training.seed,
        spec.evaluation.max_rows,
        make_encoding(session.inputs.model, training_template),
    )
    examples = dataset.prepare_dataset(request, session.inputs, tokenizer, settings.scratch / "tokens")
    examples = replace(
        examples, forgetting_text=forgetting.encode_text(spec, session.inputs.forgetting_text, tokenizer)
    )
    run.counts = examples.counts
    warnings = [*date_warnings, *examples.warnings, *objectives.check_sequences(spec, examples.train)]
    # on a workstation the preflight runs in the same process and has given some of these warnings already
    run.warnings += [warning for warning in warnings if warning not in run.warnings]
    if session.process.is_main_process:
        dataset_drift.refuse_changed_data(session.output, settings.checkpoints, settings.origin, examples.digests)
    return examples


def fill_unset_training(session: Session, prepared: PreparedTraining) -> tuple[Session, PreparedTraining]:
    """Choose the packing and the batch that the job leaves unset; return session and inputs with them."""
    if not training_choice.has_open_fields(session.settings.job.spec):
        return session, prepared
    with phase("waiting for the model, and choosing the batch", "load"):
        base = [prepared.base()]
        session = training_choice.choose_training(session, base[0], prepared.examples)
    return session, replace(prepared, base=base.pop)


def train(session: Session, prepared: PreparedTraining) -> trained_adapter.TrainedAdapter | None:
    """Train to the last step and save the adapter; return None in every process but the main one.

    The model is freed when this function returns, because the verification needs its memory.
    """
    trained = train_model(session, tokenizer=prepared.tokenizer, examples=prepared.examples, take_base=prepared.base)
    if trained is None:
        return None
    with phase("saving the adapter", "publish"):
        is_adapter = session.settings.job.spec.method.full is None
        if is_adapter:
            with CLOCK.spend("hash"):
                unchanged = loading.digest_base_weights(trained.model) == trained.base_digest
            if not unchanged:
                raise Failure(Reason.VERIFICATION_FAILED, BASE_CHANGED)
        return trained_adapter.save_adapter(session, trained, prepared.examples)


def verify(session: Session, prepared: PreparedTraining, adapter: trained_adapter.TrainedAdapter) -> VerifiedAdapter:
    """Load the adapter onto a fresh base, compare it with the trained model, and evaluate it.

    Raises:
        Failure: VERIFICATION_FAILED if the loaded adapter answers otherwise than the trained one.
    """
    device.free_memory()
    spec, run, examples = session.settings.job.spec, session.run, prepared.examples
    # a reward model scores texts and writes none
    sample_count = 0 if spec.objective == "reward" else spec.evaluation.samples
    prompts = samples.choose_prompts(prepared.tokenizer, examples.held_out, sample_count)
    with phase("verifying the adapter on a fresh base", "verify"):
        work = partial(verify_on_fresh_base, session, prepared, adapter, prompts)
        verification_result, measure = device.run_where_it_fits(
            partial(final_evaluation.run_with_workers, session, examples, adapter, work), ["gpu", "streamed", "cpu"]
        )
        if verification_result.golden:
            verification.write_golden(verification_result.golden, adapter.directory)
        measured = verification_result.evaluation.model_copy(update={"step": run.published_step})
        evaluation, refusal = gate.apply_gate(spec.evaluation.gate, measured)
        run.evaluation = evaluation
        run.warnings += verification_result.warnings
        if run.progress:
            losses = {"base_eval_loss": evaluation.base_loss, "eval_loss": evaluation.loss}
            session.trackers.log_metrics(run.progress.step, losses)
    return VerifiedAdapter(
        verification=replace(verification_result, evaluation=evaluation),
        measure=measure,
        prompts=prompts,
        refusal=refusal,
    )


def verify_on_fresh_base(
    session: Session,
    prepared: PreparedTraining,
    adapter: trained_adapter.TrainedAdapter,
    prompts: list[samples.Prompt],
    placement: device.Placement,
) -> tuple[verification.Verification, measures.Measure]:
    """Verify the adapter on a base in the serving dtype."""
    examples, streamed = prepared.examples, placement == "streamed"
    scoring = final_evaluation.make_scoring(
        session, prepared.tokenizer, examples, adapter.directory, adapter.serving_dtype, placement
    )
    result = verification.verify(
        scoring,
        trained=adapter.answers,
        held_out=len(examples.held_out),
        # each token of an answer would take a pass over all streamed layers
        generate_samples=partial(
            samples.generate_answers, tokenizer=prepared.tokenizer, prompts=[] if streamed else prompts
        ),
        tokens=final_evaluation.batch_tokens(session, placement),
        streamed=streamed,
    )
    return result, scoring.measure


def compare_with_full(
    session: Session, prepared: PreparedTraining, adapter: trained_adapter.TrainedAdapter, verified: VerifiedAdapter
) -> VerifiedAdapter:
    """Add a full fine-tuning of the same base to the evaluation, if ``evaluation.compareWithFull`` is set."""
    if not session.settings.job.spec.evaluation.compare_with_full:
        return verified
    device.free_memory()
    with phase("full fine-tuning of the base, to compare the adapter with", "evaluate"):
        evaluation = full_comparison.compare(
            session,
            adapter=adapter,
            evaluation=verified.verification.evaluation,
            measure=verified.measure,
            tokenizer=prepared.tokenizer,
            examples=prepared.examples,
        )
    session.run.evaluation = evaluation
    return replace(verified, verification=replace(verified.verification, evaluation=evaluation))


def publish(
    session: Session, prepared: PreparedTraining, adapter: trained_adapter.TrainedAdapter, verified: VerifiedAdapter
) -> TrainerResult:
    """Write the report, and upload the adapter with its manifest last.

    Raises:
        Failure: GATE_FAILED if the gate refused the adapter, which is then kept beside the published ones.
    """
    device.free_memory()
    result = verified.verification
    with phase("writing the report", "publish"):
        publishing.write_report(session, adapter, result, prepared.examples, verified.prompts)
    with phase("uploading the adapter", "publish"):
        outcome = (
            publishing.publish(session, adapter, result)
            if verified.refusal is None
            else publishing.publish_rejected(session, adapter, result, verified.refusal)
        )
    comparison_cleanup.delete_comparison_files(session.settings, session.output)
    if isinstance(outcome, Failure):
        raise outcome
    return outcome


def quiet_libraries() -> None:
    """Turn off the libraries' progress bars and deprecation warnings, which would fill a pod's log."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.simplefilter("ignore", FutureWarning)
