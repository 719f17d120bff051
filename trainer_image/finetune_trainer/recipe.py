"""The training itself, from the top down: data, model, adapter, loop, verification, upload. Everything that imports torch begins here."""

import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import torch
import transformers
from peft import PeftModel
from transformers import PrinterCallback, set_seed
from trl.data_utils import pack_dataset

from finetune_api import vllm
from finetune_api.finetunejob import CheckpointStatus, FineTuneJobSpec, ReportStatus, Training
from finetune_api.manifest import REPORT_NAME, AdapterManifest, CheckpointManifest, FileEntry, StoredFiles
from finetune_api.messages import TrainerResult
from finetune_api.reasons import Reason
from finetune_artifacts.checkpoints import checkpoint_uri, delete_checkpoint, list_checkpoints, newest_checkpoint
from finetune_artifacts.store import Place
from finetune_artifacts.upload import put_manifest, upload_directory
from finetune_trainer import (
    adalora,
    attempts,
    beside,
    changed,
    contamination,
    continuing,
    conversion,
    forgetting,
    gate,
    hubpush,
    merging,
    methods,
    objectives,
    samples,
    stopping,
    verification,
)
from finetune_trainer import data as dataset
from finetune_trainer import model as models
from finetune_trainer.basemodel import canonical_name
from finetune_trainer.exact import exact
from finetune_trainer.failures import Failure, Preempted
from finetune_trainer.hooks import Hooks
from finetune_trainer.interruption import Interruption
from finetune_trainer.logs import log, phase
from finetune_trainer.progress import Reporter
from finetune_trainer.report.contents import Sample
from finetune_trainer.run import Run
from finetune_trainer.settings import Settings, now
from finetune_trainer.sources import Inputs
from finetune_trainer.tracking import Trackers
from finetune_trainer.uploads import CheckpointUploader

SURROUNDINGS = "surroundings.json"
"""Beside a checkpoint: what can change the last bits of a resumed run without being a setting of the job."""

SETTLE_SECONDS = 60.0
"""How long a failed training waits for the upload of the last good checkpoint."""


@dataclass(frozen=True)
class Session:
    """What the whole attempt has in hand."""

    settings: Settings
    inputs: Inputs
    output: Place
    run: Run
    interruption: Interruption
    reporter: Reporter
    trackers: Trackers

    @property
    def scratch(self) -> Path:
        """Directory for the files of this attempt."""
        return self.settings.scratch / "run"


@dataclass(frozen=True)
class Plan:
    """What follows from settings, data and machine before the first step."""

    precision: str
    total_steps: int
    warmup_steps: int
    save_every: int
    log_every: int


@dataclass(frozen=True)
class Resume:
    """A checkpoint on the local disk to go on from."""

    step: int
    directory: Path
    stopped: bool = False
    """After it the training was stopped early: there is nothing left to do."""


@dataclass(frozen=True)
class Made:
    """A trained adapter, saved in ``directory`` as it is published, and what has to be known of it once the model that it was trained on is gone."""

    directory: Path
    kept: Path | None
    """The form in which it was trained, if it is published in another."""
    peft_type: str
    """PEFT's name of the method that it was trained with."""
    trained: verification.Trained
    serving_dtype: torch.dtype
    target_modules: list[str]
    trainable_parameters: int
    base_digest: str


def follow(session: Session) -> TrainerResult:
    """Train, verify and publish. Raises what ends it early."""
    spec = session.settings.job.spec
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    quiet_libraries()
    with phase("preparing the data"):
        tokenizer = models.load_tokenizer(session.inputs.model)
        training = spec.training
        wanted = dataset.Wanted(
            spec.dataset, spec.objective, training.max_length, training.seed, spec.evaluation.max_rows
        )
        examples = dataset.prepare(wanted, session.inputs, tokenizer, session.settings.scratch / "tokens")
        general = forgetting.sequences(spec, session.inputs.general, tokenizer)
        session.run.counts = examples.counts
        found = [*examples.warnings, *objectives.check_sequences(spec, examples.train)]
        # on a workstation the preflight, in the same process, has said some of it already
        session.run.warnings += [warning for warning in found if warning not in session.run.warnings]
        changed.refuse_changed_data(
            session.output, session.settings.checkpoints, session.settings.origin, examples.digests
        )
    made = make_adapter(session, tokenizer, examples)
    models.release()
    # a model that scores texts writes none
    wanted_samples = 0 if spec.objective == "reward" else spec.evaluation.samples
    prompts = samples.choose(tokenizer, examples.held_out, wanted_samples)
    with phase("verifying the adapter on a fresh base"):
        verified = verification.verify(
            session.inputs.model,
            made.directory,
            made.trained,
            objectives.measure(spec, examples.held_out, examples.held_out_rows),
            len(examples.held_out),
            general,
            partial(models.load_base, dtype=made.serving_dtype, scores_padded_with=padding(session, tokenizer)),
            partial(samples.answers, tokenizer=tokenizer, prompts=prompts),
        )
        if verified.golden:
            verification.write_golden(verified.golden, made.directory)
        measured = verified.evaluation.model_copy(update={"step": session.run.published_step})
        evaluation, refusal = gate.judge(spec.evaluation.gate, measured)
        verified = replace(verified, evaluation=evaluation)
        session.run.evaluation = evaluation
        session.run.warnings += verified.warnings
        if session.run.progress:
            losses = {"base_eval_loss": evaluation.base_loss, "eval_loss": evaluation.loss}
            session.trackers.tell(session.run.progress.step, losses)
    models.release()
    merged = merge(session, made) if spec.output.merged_model and refusal is None else {}
    verified = replace(verified, measured=verified.measured | merged)
    with phase("writing the report"):
        write_beside(session, made, verified, examples, prompts)
    with phase("uploading the adapter"):
        if refusal is not None:
            raise keep(session, made, verified, refusal)
        return publish(session, made, verified)


def quiet_libraries() -> None:
    """Progress bars and other libraries' deprecations are no use in a pod's log."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.simplefilter("ignore", FutureWarning)


def make_adapter(session: Session, tokenizer: Any, examples: dataset.Examples) -> Made:
    """Train to the last step and save the adapter. The model lives no longer than this function: its memory is needed afterwards."""
    settings, spec = session.settings, session.settings.job.spec
    sequences = to_dataset(examples, spec.training)
    plan = make_plan(settings, len(sequences))
    with phase("loading the model"):
        model = load_model(session, plan, tokenizer)
        digest = models.base_digest(model)
    describe(session, plan, model)
    mark = fingerprint(session, examples, digest)
    with phase("looking for a checkpoint"):
        resume = find_checkpoint(session, mark)
    if spec.training.packing:
        contamination.refuse_contamination(model, examples.train)
    train(session, plan, model, tokenizer, sequences, examples, mark, resume)
    with phase("saving the adapter"):
        if spec.method.full is None and models.base_digest(model) != digest:
            raise Failure(
                Reason.VERIFICATION_FAILED, "the training changed the base model's weights, which must be frozen"
            )
        return save_adapter(session, plan, model, examples, digest)


def make_plan(settings: Settings, sequences: int) -> Plan:
    """Steps and intervals. A step is one update of the adapter: accumulation × batch sequences."""
    spec, training = settings.job.spec, settings.job.spec.training
    if training.optimizer == "paged_adamw_8bit" and not models.has_gpu():
        raise Failure(
            Reason.SPEC_INVALID, "paged_adamw_8bit needs a GPU: choose adamw_torch", "spec.training.optimizer"
        )
    batches = math.ceil(sequences / training.per_device_batch_size)
    per_epoch = math.ceil(batches / training.gradient_accumulation_steps)
    total = training.max_steps or math.ceil((training.epochs or 1.0) * per_epoch)
    return Plan(
        precision=models.precision_of(training),
        total_steps=total,
        warmup_steps=math.ceil(training.warmup_ratio * total),
        save_every=spec.checkpoint.every_steps or min(max(total // 10, 1), 500),
        log_every=max(1, min(total // 100, 50)),
    )


def to_dataset(examples: dataset.Examples, training: Training) -> datasets.Dataset:
    """The training sequences as TRL takes them, several in one row where packing is on."""
    rows = examples.train
    if not training.packing:
        return rows
    packed = pack_dataset(rows, training.max_length, "bfd")
    log.info("packed %d sequences into %d rows", len(rows), len(packed))
    return packed


def load_model(session: Session, plan: Plan, tokenizer: Any) -> Any:
    """The base with a fresh adapter. The seed is set first: the adapter begins with random numbers."""
    spec, inputs = session.settings.job.spec, session.inputs
    set_seed(spec.training.seed)
    base = models.load_base(
        inputs.model,
        models.DTYPES[plan.precision],
        models.quantization_of(spec.method, plan.precision),
        scores_padded_with=padding(session, tokenizer),
    )
    model = methods.add_adapter(
        base, spec.method, methods.Base(inputs.model, inputs.model_commit, plan.total_steps, spec.objective == "reward")
    )
    if spec.output.merged_model:
        merging.refuse_unmergeable(model)
    if inputs.adapter is not None:
        continuing.load(model, inputs.adapter.directory, spec.method)
    if getattr(spec.method.config, "init", None) in methods.BEGIN_WITH_AN_UPDATE:
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
    run.parameters = beside.parameters_of(model)
    run.derived = {
        "device": device_name(),
        "precision": plan.precision,
        "learning rate": f"{learning_rate(session.settings.job.spec):g}",
        "steps": str(plan.total_steps),
        "warm-up steps": str(plan.warmup_steps),
        "sequences per step": str(training.per_device_batch_size * training.gradient_accumulation_steps),
        "a checkpoint every": f"{plan.save_every} steps",
    }
    log.info(
        "%s trainable parameters; %d steps of %d × %d sequences of at most %d tokens, learning rate %g, %s on %s",
        f"{run.parameters.trainable:,}",
        plan.total_steps,
        training.per_device_batch_size,
        training.gradient_accumulation_steps,
        training.max_length,
        learning_rate(session.settings.job.spec),
        plan.precision,
        device_name(),
    )


def learning_rate(spec: FineTuneJobSpec) -> float:
    """The one that the user chose, or the method's own."""
    return spec.training.learning_rate or spec.method.config.default_learning_rate


def device_name() -> str:
    """The device for people."""
    return torch.cuda.get_device_name(0) if models.has_gpu() else f"CPU ({torch.get_num_threads()} threads)"


def fingerprint(session: Session, examples: dataset.Examples, base: str) -> str:
    """sha256 of all that decides the next step. A checkpoint with another one belongs to another run."""
    spec = session.settings.job.spec
    decisive: dict[str, Any] = {
        "model": [canonical_name(session.settings), session.inputs.model_commit, base],
        "adapter": session.inputs.adapter.digest if session.inputs.adapter else None,
        "dataset": spec.dataset.model_dump(
            mode="json", include={"format", "columns", "template", "validation", "max_samples"}
        ),
        "digests": [digest for _, digest in examples.digests],
        "objective": [spec.objective, spec.preference.to_json() if spec.preference else None],
        "method": spec.method.to_json(),
        "training": spec.training.to_json() | {"learningRate": learning_rate(spec)},
    }
    if stopping.wanted(spec):
        decisive["evaluation"] = spec.evaluation.to_json()["everySteps"], spec.evaluation.max_rows
    return f"sha256:{hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()}"


def surroundings() -> dict[str, str]:
    """What else the last bits of a result hang on."""
    return {"device": device_name(), "threads": str(torch.get_num_threads()), **versions()}


def versions() -> dict[str, str]:
    """Versions of the libraries that make the adapter."""
    names = ("accelerate", "bitsandbytes", "finetune-operator", "peft", "tokenizers", "torch", "transformers", "trl")
    return {name: importlib.metadata.version(name) for name in names}


def find_checkpoint(session: Session, mark: str) -> Resume | None:
    """The newest whole checkpoint of this very run, fetched. Those that are newer, torn or of other settings are removed."""
    settings, output, run = session.settings, session.output, session.run
    directory = session.scratch / "resume"
    manifest = newest_checkpoint(output, settings.checkpoints, mark, directory)
    before = attempts.read(directory) if manifest else []
    resumed_from = manifest.step if manifest else None
    run.attempts = attempts.following(before, settings.attempt, now(), resumed_from, device_name())
    step = manifest.step if manifest else -1
    for stored in list_checkpoints(output, settings.checkpoints):
        if stored.step > step:
            log.warning("removing %s, which cannot be continued from", stored.uri)
            delete_checkpoint(output, stored)
    if manifest is None:
        log.info("no checkpoint to continue from: starting at step 0")
        return None
    log.info("continuing from step %d of %d", manifest.step, manifest.total_steps)
    run.resumed_from_step = manifest.step
    run.checkpoint = status_of(settings, manifest)
    note_changed_surroundings(directory, run)
    return Resume(manifest.step, directory)


def status_of(settings: Settings, manifest: CheckpointManifest) -> CheckpointStatus:
    """``FineTuneJob.status.checkpoint`` for a checkpoint that was found."""
    return CheckpointStatus(
        uri=str(checkpoint_uri(settings.checkpoints, manifest.step)), step=manifest.step, saved_at=manifest.created_at
    )


def note_changed_surroundings(directory: Path, run: Run) -> None:
    """Warn where this attempt runs on something else than the last one: the result then differs in its last bits."""
    path = directory / SURROUNDINGS
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    changed = [
        f"{name} {before[name]} → {value}" for name, value in surroundings().items() if before.get(name, value) != value
    ]
    if changed:
        run.warnings.append(f"resumed on other surroundings, so the last bits may differ: {', '.join(changed)}")


def train(
    session: Session,
    plan: Plan,
    model: Any,
    tokenizer: Any,
    sequences: datasets.Dataset,
    examples: dataset.Examples,
    mark: str,
    resume: Resume | None,
) -> None:
    """Run the loop to its last step, or to where the pod is asked to stop. Raises Preempted, Failure and ArtifactError."""
    settings, run = session.settings, session.run
    spec = settings.job.spec

    def saved(checkpoint: CheckpointStatus) -> None:
        run.checkpoint = checkpoint
        if report := run.report():
            session.reporter.report(report)

    uploads = session.scratch / "uploads"
    uploader = CheckpointUploader(
        session.output, settings.checkpoints, settings.origin, mark, spec.checkpoint.keep, uploads, saved
    )
    extra = {
        SURROUNDINGS: json.dumps(surroundings()).encode(),
        changed.DATASET: changed.to_bytes(examples.digests),
        attempts.NAME: json.dumps(run.attempts).encode(),
    }
    measure = objectives.measure(spec, examples.held_out, examples.held_out_rows)
    if spec.evaluation.every_steps and spec.objective != "sft":
        measure(model)  # before its first step the model is its own reference
    if warning := objectives.drops_dropout(spec):
        run.warnings.append(warning)

    def held_out_loss() -> float:
        return measure(model).loss

    resumed = resume.directory if resume else None
    best = stopping.Best(spec.training.early_stopping, session.scratch, resumed) if stopping.wanted(spec) else None
    if resume and best and best.stopped:
        resume = replace(resume, stopped=True)
    hooks = Hooks(
        run,
        session.reporter,
        uploader,
        session.interruption,
        spec.evaluation.every_steps,
        held_out_loss,
        extra,
        session.trackers.tell,
        best,
    )
    trainer = make_trainer(session, plan, model, tokenizer, sequences, hooks)
    try:
        with session.interruption.deferred(), phase("training"):
            loop(trainer, plan, resume)
            stopped = best is not None and best.stopped
            wait_for_uploads(session, uploader, finished=stopped or trainer.state.global_step >= plan.total_steps)
    except Exception:
        # a good checkpoint from before the error may still be on its way
        uploader.settle(SETTLE_SECONDS)
        raise
    finally:
        uploader.close()
    objectives.without_reference(model)
    if best is not None:
        best.restore(model)
        run.published_step = best.seen.step
        run.derived["published weights"] = f"of step {best.seen.step}, after {trainer.state.global_step} steps"
    write_metrics(trainer.state.log_history, session.scratch / "metrics.jsonl")


def loop(trainer: Any, plan: Plan, resume: Resume | None) -> None:
    """The loop of transformers' Trainer; one that was interrupted after its last step, or after an early stop, has nothing left to do."""
    if resume and (resume.stopped or resume.step >= plan.total_steps):
        trainer._load_from_checkpoint(str(resume.directory))
        trainer.state.global_step = resume.step
        trainer.state.log_history = json.loads((resume.directory / "trainer_state.json").read_text(encoding="utf-8"))[
            "log_history"
        ]
        return
    trainer.train(resume_from_checkpoint=str(resume.directory) if resume else None)


def wait_for_uploads(session: Session, uploader: CheckpointUploader, *, finished: bool) -> None:
    """Wait for the last checkpoint's upload; within the grace period, if the pod is to stop. Raises Preempted then."""
    interruption = session.interruption
    while not interruption.requested and not uploader.wait(seconds=1):
        pass
    if interruption.requested:
        uploaded = uploader.wait(seconds=interruption.seconds_left())
        step = session.run.progress.step if session.run.progress else 0
        how = "is saved" if uploaded else "could not be uploaded within the grace period"
        raise Preempted(f"asked to stop; the checkpoint of step {step} {how}")
    if not finished:
        raise Failure(Reason.TRAINER_ERROR, "the training loop ended before its last step")


def make_trainer(
    session: Session, plan: Plan, model: Any, tokenizer: Any, sequences: datasets.Dataset, hooks: Hooks
) -> Any:
    """TRL's trainer for the objective over our sequences, with nothing of its own on the screen or the network."""
    training, objective = session.settings.job.spec.training, objectives.recipe(session.settings.job.spec)
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
        optim=training.optimizer,
        seed=training.seed,
        data_seed=training.seed,
        bf16=plan.precision == "bf16",
        fp16=plan.precision == "fp16",
        use_cpu=not models.has_gpu(),
        gradient_checkpointing=training.gradient_checkpointing,
        dataloader_pin_memory=models.has_gpu(),
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
    trainer = exact(objective.trainer)(
        model=model,
        args=arguments,
        train_dataset=sequences,
        processing_class=tokenizer,
        callbacks=[adalora.Pruning(), hooks],
    )
    trainer.remove_callback(PrinterCallback)
    methods.to_float32(trainer.model)
    return trainer


def write_metrics(history: list[dict[str, Any]], path: Path) -> None:
    """All that was logged of single steps, over all attempts, one JSON object a line."""
    # transformers' summary at the end speaks of the last attempt alone
    steps = [entry for entry in history if "train_runtime" not in entry]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in steps), encoding="utf-8")


def save_adapter(session: Session, plan: Plan, model: Any, examples: dataset.Examples, digest: str) -> Made:
    """Save what was trained under its base's canonical name, as a plain LoRA where it can be one, and ask the model for its answers."""
    inputs, method = session.inputs, session.settings.job.spec.method
    trained, directory = session.scratch / "trained", session.scratch / "adapter"
    initial = conversion.load_factors(initial_factors(session)) if initial_factors(session).is_file() else None
    serving = models.serving_dtype(model)
    exactly = serving == models.DTYPES[plan.precision] and method.quantization is None and not models.has_gpu()
    answers = verification.ask_trained(model, examples.held_out, exact=exactly and initial is None)
    kind = methods.peft_type(model)
    suffixes, count = models.adapted_suffixes(model), models.trainable(model)
    verification.save(model, trained, models.DTYPES[plan.precision])
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
        models.copy_tokenizer(inputs.model, directory)
    shutil.copyfile(session.scratch / "metrics.jsonl", directory / "metrics.jsonl")
    return Made(
        directory=directory,
        kept=kept,
        peft_type=kind,
        trained=answers,
        serving_dtype=serving,
        target_modules=suffixes,
        trainable_parameters=count,
        base_digest=digest,
    )


def merge(session: Session, made: Made) -> dict[str, float]:
    """Merge the adapter into the base, in the precision of the training, and say how exact that is."""
    dtype = models.DTYPES[models.precision_of(session.settings.job.spec.training)]
    with phase("merging the adapter into the base"):
        return merging.merge(session.inputs.model, made.directory, dtype, made.trained, merged_directory(session))


def merged_directory(session: Session) -> Path:
    """Where the merged model is, if there is one."""
    return session.scratch / "merged"


def adapter_config(directory: Path) -> dict[str, Any]:
    """The configuration beside a saved adapter; for a whole model only its kind."""
    path = directory / "adapter_config.json"
    if not path.is_file():
        return {"peft_type": "FULL"}
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def servable_by(directory: Path) -> list[str]:
    """The engines that can load the adapter as it is."""
    return [] if vllm.features(adapter_config(directory)) else ["vllm"]


def stored(session: Session, name: str, directory: Path | None) -> StoredFiles | None:
    """Upload what goes beside the adapter. It is whole when the adapter's manifest, which names it, is there."""
    if directory is None or not directory.is_dir():
        return None
    place = session.settings.output.child(name)
    return StoredFiles(uri=str(place), files=upload_directory(session.output, place, directory))


def write_beside(
    session: Session,
    made: Made,
    verified: verification.Verified,
    examples: dataset.Examples,
    prompts: list[samples.Prompt],
) -> None:
    """Report, model card and TensorBoard's files, in the adapter's directory and so in its manifest."""
    if refused := vllm.features(config := adapter_config(made.directory)):
        session.run.warnings.append(f"vLLM cannot serve the adapter: {'; '.join(refused)}")
    base, adapter = verified.answers
    report = beside.gather(
        session.settings,
        session.run,
        examples,
        [Sample(p.text, p.expected, one, other) for p, one, other in zip(prompts, base, adapter, strict=False)],
        verified.evaluation,
        verified.measured,
        versions(),
        session.inputs.model_commit,
        beside.license_of(session.inputs.model),
        made.directory / "metrics.jsonl",
        str(config["peft_type"]),
        config.get("r"),
        servable_by(made.directory),
    )
    beside.write(made.directory, report)


def manifest_of(
    session: Session, made: Made, verified: verification.Verified, files: list[FileEntry]
) -> AdapterManifest:
    """What there is to know of an adapter whose files are uploaded."""
    settings, config = session.settings, adapter_config(made.directory)
    return AdapterManifest(
        job=settings.origin,
        created_at=now(),
        base_model=canonical_name(settings),
        base_revision=session.inputs.model_commit,
        peft_type=str(config["peft_type"]),
        trained_peft_type=made.peft_type,
        rank=config.get("r") or None,
        alpha=config.get("lora_alpha", config.get("alpha")),
        target_modules=made.target_modules,
        trainable_parameters=made.trainable_parameters,
        servable_by=servable_by(made.directory),
        base_weights_sha256=made.base_digest if settings.job.spec.method.full is None else None,
        verification=verified.measured,
        evaluation=verified.evaluation,
        versions=versions(),
        files=files,
    )


def keep(session: Session, made: Made, verified: verification.Verified, refusal: str) -> Failure:
    """Upload an adapter that did not pass its gate to where nobody takes it for a published one; what there is to say of it. Raises ArtifactError."""
    place = session.settings.rejected
    gate.make_room(session.output, place)
    put_manifest(
        session.output,
        place,
        manifest_of(session, made, verified, upload_directory(session.output, place, made.directory)),
    )
    session.run.page = ReportStatus(uri=str(place.child(REPORT_NAME)))
    text = f"{refusal}: the adapter is not published, but kept with its report in {place}"
    return Failure(Reason.GATE_FAILED, text, gate.FIELD)


def publish(session: Session, made: Made, verified: verification.Verified) -> TrainerResult:
    """Upload the adapter, its manifest last. Raises ArtifactError."""
    settings, run = session.settings, session.run
    hub = settings.job.spec.output.hub
    files = upload_directory(session.output, settings.adapter, made.directory)
    manifest = manifest_of(session, made, verified, files).model_copy(
        update={
            "trained": stored(session, "trained", made.kept),
            "merged": stored(session, "merged", merged_directory(session)),
            "hub": hubpush.push(settings, hub, made.directory) if hub else None,
        }
    )
    digest = put_manifest(session.output, settings.adapter, manifest)
    log.info("adapter %s (%s)", settings.adapter, digest)
    return TrainerResult(
        reason="Succeeded",
        message=f"the adapter is in {settings.adapter}",
        resumed_from_step=run.resumed_from_step,
        checkpoint=run.checkpoint,
        evaluation=verified.evaluation,
        adapter=manifest.status(str(settings.adapter), digest),
        progress=run.progress,
        data=run.counts,
        report=ReportStatus(uri=str(settings.adapter.child(REPORT_NAME))),
        warnings=run.warnings,
    )
