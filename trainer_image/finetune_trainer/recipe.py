"""The training itself, from the top down: data, model, adapter, loop, verification, upload. Everything that imports torch begins here."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import torch
import transformers
from peft import PeftModel
from transformers import PrinterCallback, set_seed
from trl.data_utils import pack_dataset

from finetune_api.finetunejob import CheckpointStatus, Training
from finetune_api.messages import TrainerResult
from finetune_api.reasons import Reason
from finetune_trainer import full_comparison
from finetune_trainer.checkpoints import (
    attempt_history,
    best_weights,
    comparison_cleanup,
    dataset_drift,
    exact_resume,
    resuming,
    run_fingerprint,
    template_date,
)
from finetune_trainer.checkpoints.uploads import CheckpointUploader
from finetune_trainer.data import dataset
from finetune_trainer.distributed import process_group, random_state
from finetune_trainer.evaluation import forgetting, gate, measures, samples, verification
from finetune_trainer.methods import adalora, conversion, inspection, peft_config, starting_adapter
from finetune_trainer.models import device, loading, memory, performance
from finetune_trainer.models.base_files import canonical_name
from finetune_trainer.publish import merging, publishing
from finetune_trainer.report import assemble
from finetune_trainer.runtime.background import start_thread
from finetune_trainer.runtime.failures import Failure, Preempted
from finetune_trainer.runtime.logs import log, phase
from finetune_trainer.session.plan import Plan, learning_rate, make_plan
from finetune_trainer.session.session import Session
from finetune_trainer.training import contamination, divergence, objectives, sharding
from finetune_trainer.training.callback import TrainingCallback

BASE_CHANGED = "the training changed the base model's weights, which must be frozen"
SETTLE_SECONDS = 60.0
"""How long a failed training waits for the upload of the last good checkpoint."""


def train_adapter(session: Session) -> TrainerResult:
    """Train, verify and publish. Raises what ends it early.

    Where several processes train together each comes along here up to the last step; from there on the one that speaks for the run goes on alone.
    """
    spec, process = session.settings.job.spec, session.process
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    quiet_libraries()
    day = None
    if process.local_rank:
        process_group.init(process, session.scratch)  # the first one of the node has prepared the data then
        day = process_group.broadcast(None)
    settings = session.settings
    tokenizer = loading.load_tokenizer(session.inputs.model, trust_remote_code=spec.model.trust_remote_code)
    base = start_thread(partial(load_base, session, tokenizer))
    with phase("preparing the data, with the model being loaded beside"):
        session.run.day, dated = template_date.pin_template_date(
            tokenizer, session.output, settings.checkpoints, settings.origin, day
        )
        training = spec.training
        wanted = dataset.DatasetRequest(
            spec.dataset, spec.objective, training.max_length, training.seed, spec.evaluation.max_rows
        )
        examples = dataset.prepare(wanted, session.inputs, tokenizer, session.settings.scratch / "tokens")
        examples = replace(examples, general=forgetting.sequences(spec, session.inputs.general, tokenizer))
        session.run.counts = examples.counts
        found = [*dated, *examples.warnings, *objectives.check_sequences(spec, examples.train)]
        # on a workstation the preflight, in the same process, has said some of it already
        session.run.warnings += [warning for warning in found if warning not in session.run.warnings]
        if process.is_main_process:
            dataset_drift.refuse_changed_data(session.output, settings.checkpoints, settings.origin, examples.digests)
    if not process.local_rank:
        process_group.init(process, session.scratch)
        process_group.broadcast(session.run.day)
    made = make_adapter(session, tokenizer, examples, base)
    device.free_memory()
    if made is None:
        return TrainerResult(reason="Succeeded", message=f"{process.name} has done its part")
    # a model that scores texts writes none
    wanted_samples = 0 if spec.objective == "reward" else spec.evaluation.samples
    prompts = samples.choose_prompts(tokenizer, examples.held_out, wanted_samples)
    with phase("verifying the adapter on a fresh base"):
        verified, measure = verify(session, made, tokenizer, examples, prompts)
        if verified.golden:
            verification.write_golden(verified.golden, made.directory)
        measured = verified.evaluation.model_copy(update={"step": session.run.published_step})
        evaluation, refusal = gate.apply_gate(spec.evaluation.gate, measured)
        verified = replace(verified, evaluation=evaluation)
        session.run.evaluation = evaluation
        session.run.warnings += verified.warnings
        if session.run.progress:
            losses = {"base_eval_loss": evaluation.base_loss, "eval_loss": evaluation.loss}
            session.trackers.tell(session.run.progress.step, losses)
    device.free_memory()
    if spec.evaluation.compare_with_full:
        with phase("full fine-tuning of the base, to compare the adapter with"):

            def train_whole(whole: Session, on_begin: Callable[[str, int], None]) -> tuple[Plan, Any, str]:
                return train_model(whole, tokenizer, examples, partial(load_base, whole, tokenizer), on_begin)

            evaluation = full_comparison.compare(session, made, evaluation, measure, examples.general, train_whole)
        verified = replace(verified, evaluation=evaluation)
        session.run.evaluation = evaluation
    merged = merge(session, made) if spec.output.merged_model and refusal is None else {}
    verified = replace(verified, measured=verified.measured | merged)
    with phase("writing the report"):
        publishing.write_report(session, made, verified, examples, prompts)
    with phase("uploading the adapter"):
        ended = (
            publishing.publish(session, made, verified)
            if refusal is None
            else publishing.publish_rejected(session, made, verified, refusal)
        )
    comparison_cleanup.delete_comparison_files(session.settings, session.output)
    if isinstance(ended, Failure):
        raise ended
    return ended


def verify(
    session: Session,
    made: publishing.TrainedAdapter,
    tokenizer: Any,
    examples: dataset.Examples,
    prompts: list[samples.Prompt],
) -> tuple[verification.Verification, measures.Measure]:
    """Load the adapter back onto a fresh base, and compare and evaluate it there; with it what it was measured by. Raises Failure(VERIFICATION_FAILED)."""
    load = partial(
        loading.load_base,
        dtype=made.serving_dtype,
        scores_padded_with=padding(session, tokenizer),
        spread=is_sharded(session),
        trust_remote_code=session.settings.job.spec.model.trust_remote_code,
    )

    def verified(on_cpu: bool) -> tuple[verification.Verification, measures.Measure]:
        measure = measures.make_measure(session.settings.job.spec, examples.held_out, examples.held_out_rows)
        found = verification.verify(
            session.inputs.model,
            made.directory,
            made.trained,
            measure,
            len(examples.held_out),
            examples.general,
            partial(load, on_cpu=on_cpu),
            partial(samples.generate_answers, tokenizer=tokenizer, prompts=prompts),
        )
        return found, measure

    return device.run_on_gpu_or_cpu(verified)


def quiet_libraries() -> None:
    """Progress bars and other libraries' deprecations are no use in a pod's log."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.simplefilter("ignore", FutureWarning)


def make_adapter(
    session: Session, tokenizer: Any, examples: dataset.Examples, base: Callable[[], Any]
) -> publishing.TrainedAdapter | None:
    """Train to the last step and save the adapter; None in a process that does not speak for the run.

    The model lives no longer than this function: its memory is needed afterwards.
    """
    plan, model, digest = train_model(session, tokenizer, examples, base)
    if not session.process.is_main_process:
        return None
    with phase("saving the adapter"):
        if session.settings.job.spec.method.full is None and loading.base_digest(model) != digest:
            raise Failure(Reason.VERIFICATION_FAILED, BASE_CHANGED)
        return save_adapter(session, plan, model, examples, digest)


def train_model(
    session: Session,
    tokenizer: Any,
    examples: dataset.Examples,
    base: Callable[[], Any],
    on_begin: Callable[[str, int], None] = lambda *_: None,
) -> tuple[Plan, Any, str]:
    """The plan, the model trained to its last step, and the digest of its base, which ``base`` gives once.

    ``on_begin`` hears the run's fingerprint and the step from which there is something to train.
    """
    settings, spec = session.settings, session.settings.job.spec
    sequences = to_dataset(examples, spec.training)
    plan = make_plan(settings, len(sequences), session.inputs.model)
    with phase("waiting for the model, and adding the adapter"):
        model = load_model(session, plan, base())
        digest = loading.base_digest(model) if session.process.is_main_process else ""
    describe(session, plan, model)
    mark = process_group.broadcast(resuming.fingerprint_run(session, plan, examples, digest))
    with phase("looking for a checkpoint"):
        resume = resuming.find_checkpoint(session, mark)
    if is_sharded(session):
        sharding.shard_base(model, session.process.world_size)
        part = loading.base_digest(model)
    if spec.training.packing:
        contamination.refuse_contamination(model, examples.train)
    if resume is None or resume.step < plan.total_steps:
        on_begin(mark.digest, resume.step if resume else 0)
    fit(session, plan, model, tokenizer, sequences, examples, mark, resume)
    if is_sharded(session):
        if process_group.any_rank(loading.base_digest(model) != part):
            raise Failure(Reason.VERIFICATION_FAILED, BASE_CHANGED)
        weights = exact_resume.trained_weights(model)
        del model
        device.free_memory()
        process_group.shutdown()  # the GPUs are free now
        if not session.process.is_main_process:
            return plan, None, digest
        with phase("loading the whole model"):
            model = load_model(session, plan, load_base(session, tokenizer, again=True))
            sharding.load_trained_weights(model, weights)
    process_group.shutdown()
    return plan, model, digest


def to_dataset(examples: dataset.Examples, training: Training) -> datasets.Dataset:
    """The training sequences as TRL takes them, several in one row where packing is on."""
    rows = examples.train
    if not training.packing:
        return rows
    packed = pack_dataset(rows, training.max_length, "bfd")
    log.info("packed %d sequences into %d rows", len(rows), len(packed))
    return packed


def load_base(session: Session, tokenizer: Any, *, again: bool = False) -> Any:
    """The base in the precision of the training, quantised where the method asks for it.

    One that is to be sharded lies in main memory first; ``again`` after that, whole, it is spread over the GPUs.
    """
    spec = session.settings.job.spec
    precision = device.choose_precision(spec.training)
    if not again:
        session.run.meter = memory.MemoryMeter()
    return loading.load_base(
        session.inputs.model,
        device.DTYPES[precision],
        loading.quantization_config(spec.method, precision),
        scores_padded_with=padding(session, tokenizer),
        on_cpu=is_sharded(session) and not again,
        gpu=session.process.local_rank,
        spread=again,
        trust_remote_code=spec.model.trust_remote_code,
    )


def is_sharded(session: Session) -> bool:
    """Whether each process holds a part of the base only."""
    return session.settings.job.spec.training.sharding == "full"


def load_model(session: Session, plan: Plan, base: Any) -> Any:
    """The base with a fresh adapter. The seed is set first: the adapter begins with random numbers."""
    spec, inputs = session.settings.job.spec, session.inputs
    set_seed(spec.training.seed)
    model = peft_config.add_adapter(
        base,
        spec.method,
        peft_config.Base(inputs.model, inputs.model_commit, plan.total_steps, spec.objective == "reward"),
    )
    if spec.output.merged_model:
        merging.refuse_unmergeable(model)
    if inputs.adapter is not None:
        starting_adapter.load(model, inputs.adapter.directory, spec.method)
    if getattr(spec.method.config, "init", None) in peft_config.BEGIN_WITH_AN_UPDATE:
        conversion.save_factors(conversion.lora_factors(model), initial_factors(session))
    return model


def padding(session: Session, tokenizer: Any) -> int | None:
    """The padding token by which a model that scores texts knows where one ends; None for a model that writes them."""
    return int(tokenizer.pad_token_id) if session.settings.job.spec.objective == "reward" else None


def initial_factors(session: Session) -> Path:
    """Where the beginning of an adapter is kept that took it out of the base."""
    return session.scratch / "initial.safetensors"


def describe(session: Session, plan: Plan, model: Any) -> None:
    """Say what is about to happen, and note it for the report."""
    training, run = session.settings.job.spec.training, session.run
    run.parameters = assemble.count_parameters(model)
    run.derived = {
        "device": device.device_name(),
        "precision": plan.precision,
        "gradient checkpointing": "on" if plan.gradient_checkpointing else "off",
        "optimizer": plan.optimizer,
        "compiled": "yes" if plan.compile else "no",
        "learning rate": f"{learning_rate(session.settings.job.spec):g}",
        "steps": str(plan.total_steps),
        "warm-up steps": str(plan.warmup_steps),
        "sequences per step": str(
            training.per_device_batch_size * training.gradient_accumulation_steps * session.process.world_size
        ),
        "a checkpoint every": f"{plan.save_every} steps",
    }
    if session.process.world_size > 1:
        run.derived |= {
            "processes": str(session.process.world_size),
            "sequences trained twice in a pass": str(plan.trained_twice),
        }
    log.info(
        "%s trainable parameters; %d steps of %d × %d × %d sequences of at most %d tokens, learning rate %g, %s on %s",
        f"{run.parameters.trainable:,}",
        plan.total_steps,
        session.process.world_size,
        training.per_device_batch_size,
        training.gradient_accumulation_steps,
        training.max_length,
        learning_rate(session.settings.job.spec),
        plan.precision,
        device.device_name(),
    )


def fit(
    session: Session,
    plan: Plan,
    model: Any,
    tokenizer: Any,
    sequences: datasets.Dataset,
    examples: dataset.Examples,
    mark: run_fingerprint.RunFingerprint,
    resume: resuming.Resume | None,
) -> None:
    """Run the loop to its last step, or to where the pod is asked to stop. Raises Preempted, Failure and ArtifactError."""
    settings, run = session.settings, session.run
    spec = settings.job.spec

    def saved(checkpoint: CheckpointStatus) -> None:
        run.checkpoint = checkpoint
        if report := run.report():
            session.reporter.report(report)

    uploads = session.scratch / "uploads"
    uploader = (
        CheckpointUploader(
            session.output,
            mark.place(settings.checkpoints),
            settings.origin,
            mark.digest,
            spec.checkpoint.keep,
            uploads,
            saved,
        )
        if session.process.is_main_process
        else None
    )
    extra = {
        resuming.ENVIRONMENT_FILE: json.dumps(resuming.describe_environment(session.process)).encode(),
        dataset_drift.DIGESTS_FILE: dataset_drift.encode_digests(examples.digests),
        run_fingerprint.COMPONENTS_FILE: mark.to_bytes(),
        attempt_history.HISTORY_FILE: json.dumps(run.attempts).encode(),
    }
    measure = measures.make_measure(spec, examples.held_out, examples.held_out_rows)
    if spec.evaluation.every_steps and spec.objective != "sft":
        measure(model)  # before its first step the model is its own reference
    if warning := objectives.drops_dropout(spec):
        run.warnings.append(warning)

    general = examples.general if spec.evaluation.forgetting else []

    def losses() -> dict[str, float]:
        general_loss = forgetting.loss(model, general)
        found = {"eval_loss": measure(model).loss} | ({} if general_loss is None else {"general_loss": general_loss})
        sharding.free_gathered_layers(model)
        return found

    resumed = resume.directory if resume else None
    best = (
        best_weights.BestWeights(
            spec.training.early_stopping, session.scratch, resumed, keeps=session.process.is_main_process
        )
        if best_weights.chooses_best_weights(spec)
        else None
    )
    if resume and best and best.stopped:
        resume = replace(resume, stopped=True)
    hooks = TrainingCallback(
        run,
        session.reporter,
        uploader,
        session.interruption,
        spec.evaluation.every_steps,
        losses,
        extra,
        session.trackers.tell if session.process.is_main_process else lambda *_: None,
        best,
        divergence.make_divergence_watch(spec, tokenizer),
    )
    trainer = make_trainer(session, plan, model, tokenizer, sequences, hooks)
    try:
        required = spec.training.compile == "always"
        with (
            session.interruption.deferred(),
            phase("training"),
            performance.compiled_layers(model, on=plan.compile, required=required),
        ):
            if session.process.world_size > 1:
                random_state.seed_process(spec.training.seed, 0, session.process.rank)
            loop(trainer, plan, resume)
            stopped = best is not None and best.stopped
            wait_for_uploads(session, uploader, finished=stopped or trainer.state.global_step >= plan.total_steps)
    except Exception:
        # a good checkpoint from before the error may still be on its way
        if uploader:
            uploader.settle(SETTLE_SECONDS)
        raise
    finally:
        if uploader:
            uploader.close()
    if not session.process.is_main_process:
        return
    objectives.without_reference(model)
    if best is not None:
        best.restore(model)
        run.published_step = best.seen.step
        run.derived["published weights"] = f"of step {best.seen.step}, after {trainer.state.global_step} steps"
    write_metrics(trainer.state.log_history, session.scratch / "metrics.jsonl")


def loop(trainer: Any, plan: Plan, resume: resuming.Resume | None) -> None:
    """The loop of transformers' Trainer; one that was interrupted after its last step, or after an early stop, has nothing left to do."""
    if resume and (resume.stopped or resume.step >= plan.total_steps):
        trainer._load_from_checkpoint(str(resume.directory))
        trainer.state.global_step = resume.step
        trainer.state.log_history = json.loads((resume.directory / "trainer_state.json").read_text(encoding="utf-8"))[
            "log_history"
        ]
        return
    trainer.train(resume_from_checkpoint=str(resume.directory) if resume else None)


def wait_for_uploads(session: Session, uploader: CheckpointUploader | None, *, finished: bool) -> None:
    """Wait for the last checkpoint's upload, if it is this process's; within the grace period, if the pod is to stop. Raises Preempted then."""
    interruption = session.interruption
    while uploader and not interruption.requested and not uploader.wait(seconds=1):
        pass
    if interruption.requested:
        uploaded = uploader is None or uploader.wait(seconds=interruption.seconds_left())
        step = session.run.progress.step if session.run.progress else 0
        how = "is saved" if uploaded else "could not be uploaded within the grace period"
        raise Preempted(f"asked to stop; the checkpoint of step {step} {how}")
    if not finished:
        raise Failure(Reason.TRAINER_ERROR, "the training loop ended before its last step")


def make_trainer(
    session: Session, plan: Plan, model: Any, tokenizer: Any, sequences: datasets.Dataset, hooks: TrainingCallback
) -> Any:
    """TRL's trainer for the objective over our sequences, with nothing of its own on the screen or the network."""
    training, objective = session.settings.job.spec.training, objectives.objective_of(session.settings.job.spec)
    arguments = objective.config(
        output_dir=str(session.scratch),
        per_device_train_batch_size=training.per_device_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        max_steps=plan.total_steps,
        learning_rate=learning_rate(session.settings.job.spec),
        lr_scheduler_type=training.scheduler,
        warmup_steps=plan.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=plan.optimizer,
        seed=training.seed,
        data_seed=training.seed,
        bf16=plan.precision == "bf16",
        fp16=plan.precision == "fp16",
        use_cpu=not device.has_gpu(),
        gradient_checkpointing=plan.gradient_checkpointing,
        dataloader_pin_memory=device.has_gpu(),
        logging_steps=plan.log_every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=plan.save_every,
        save_total_limit=1,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **objective.settings,
    )
    trainer = exact_resume.with_exact_resume(objective.trainer)(
        model=model,
        args=arguments,
        train_dataset=sequences,
        processing_class=tokenizer,
        callbacks=[adalora.Pruning(), hooks],
    )
    trainer.remove_callback(PrinterCallback)
    peft_config.to_float32(trainer.model)
    return trainer


def write_metrics(history: list[dict[str, Any]], path: Path) -> None:
    """All that was logged of single steps, over all attempts, one JSON object a line."""
    # transformers' summary at the end speaks of the last attempt alone
    steps = [entry for entry in history if "train_runtime" not in entry]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in steps), encoding="utf-8")


def save_adapter(
    session: Session, plan: Plan, model: Any, examples: dataset.Examples, digest: str
) -> publishing.TrainedAdapter:
    """Save what was trained under its base's canonical name, as a plain LoRA where it can be one, and ask the model for its answers."""
    inputs, method = session.inputs, session.settings.job.spec.method
    trained, directory = session.scratch / "trained", session.scratch / "adapter"
    initial = conversion.load_factors(initial_factors(session)) if initial_factors(session).is_file() else None
    serving = loading.serving_dtype(model)
    exactly = serving == device.DTYPES[plan.precision] and method.quantization is None and not device.has_gpu()
    answers = verification.record_answers(model, examples.held_out, exact=exactly and initial is None)
    kind = peft_config.peft_type(model)
    suffixes, count = inspection.adapted_suffixes(model), inspection.count_trainable(model)
    verification.save(model, trained, device.DTYPES[plan.precision])
    found = conversion.factors(model, initial) if isinstance(model, PeftModel) else None
    kept: Path | None = trained
    if found is None:
        trained.rename(directory)
        kept = None
    else:
        names = [name for name, _ in model.get_base_model().named_modules()]
        log.info("%s is published as a plain LoRA of rank %d", kind, conversion.write_lora(found, names, directory))
        if initial is not None:
            kept = None  # nobody could load it without the very same decomposition of the base
    for place in filter(None, (directory, kept)):
        if (place / "adapter_config.json").is_file():
            conversion.set_base(place, canonical_name(session.settings), inputs.model_commit)
    if kind == "FULL":
        loading.copy_tokenizer(inputs.model, directory)
    shutil.copyfile(session.scratch / "metrics.jsonl", directory / "metrics.jsonl")
    return publishing.TrainedAdapter(
        directory=directory,
        kept=kept,
        peft_type=kind,
        trained=answers,
        serving_dtype=serving,
        target_modules=suffixes,
        trainable_parameters=count,
        base_digest=digest,
    )


def merge(session: Session, made: publishing.TrainedAdapter) -> dict[str, float]:
    """Merge the adapter into the base, in the precision of the training, and say how exact that is."""
    dtype = device.DTYPES[device.choose_precision(session.settings.job.spec.training)]
    with phase("merging the adapter into the base"):
        return device.run_on_gpu_or_cpu(
            lambda on_cpu: merging.merge(
                session.inputs.model,
                made.directory,
                partial(
                    loading.load_base,
                    dtype=dtype,
                    on_cpu=on_cpu,
                    spread=is_sharded(session),
                    trust_remote_code=session.settings.job.spec.model.trust_remote_code,
                ),
                made.trained,
                publishing.merged_directory(session),
            )
        )
