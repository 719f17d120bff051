"""Train one model from its base: the adapter, or the full fine-tuning that it is compared with."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.reasons import Reason
from finetune_trainer.checkpoints import exact_resume, resuming
from finetune_trainer.data import dataset
from finetune_trainer.distributed import process_group
from finetune_trainer.models import device, loading
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log, phase
from finetune_trainer.runtime.phase_clock import CLOCK
from finetune_trainer.session.plan import Plan, choose_learning_rate, make_plan
from finetune_trainer.session.session import Session
from finetune_trainer.training import contamination, objectives, sharding
from finetune_trainer.training.fit import LoopResult, fit
from finetune_trainer.training.initial_factors import find_initial_factors
from finetune_trainer.training.model import add_adapter, is_sharded, load_base
from finetune_trainer.training.parameters import count_parameters
from finetune_trainer.training.trainer import training_rows

BASE_CHANGED = "the training changed the base model's weights, which must be frozen"


@dataclass(frozen=True)
class TrainedModel:
    """A model at its last step, and the digest that its base had before the first one."""

    plan: Plan
    model: Any
    base_digest: str


def train_model(
    session: Session,
    *,
    tokenizer: Any,
    examples: dataset.Examples,
    take_base: Callable[[], Any],
    on_begin: Callable[[str, int], None] = lambda *_: None,
) -> TrainedModel | None:
    """Train to the last step. Only the main process continues after that; the others return None.

    Args:
        session: The attempt.
        tokenizer: The model's tokenizer.
        examples: The prepared dataset.
        take_base: Returns the base model, without keeping it; called once.
        on_begin: Called with the run's fingerprint and the step that the training continues from, if a step is left.
    """
    spec, process = session.settings.job.spec, session.process
    rows = training_rows(examples.train, spec.training)
    plan = make_plan(session.settings, len(rows), session.inputs.model)
    with phase("waiting for the model, and adding the adapter", "load"):
        base = take_base()
        if spec.training.packs and not is_sharded(session):
            contamination.refuse_contamination(contamination.prepare_packing(base, examples.train))
        with CLOCK.spend("hash"):
            initial = find_initial_factors(session, base) if spec.method.config.changes_base else None
        model = add_adapter(session, plan, base, initial)
        del base
        with CLOCK.spend("hash"):
            base_digest = loading.digest_base_weights(model) if process.is_main_process else ""
    describe_training(session, plan, model)
    start_digest = initial.digest if initial else base_digest
    fingerprint = process_group.broadcast(resuming.fingerprint_run(session, plan, examples, start_digest))
    with phase("looking for a checkpoint", "checkpoint"):
        resume = resuming.find_checkpoint(session, fingerprint)
    sharded_digest = ""
    if is_sharded(session):
        sharding.shard_base(model, process.world_size)
        sharded_digest = loading.digest_base_weights(model)
        if spec.training.packs:
            contamination.refuse_contamination(contamination.find_contamination(model, examples.train))
    if resume is None or resume.step < plan.total_steps:
        on_begin(fingerprint.digest, resume.step if resume else 0)
    fitted = fit(
        session,
        plan,
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        examples=examples,
        fingerprint=fingerprint,
        resume=resume,
    )
    if is_sharded(session) and process_group.any_rank(loading.digest_base_weights(model) != sharded_digest):
        raise Failure(Reason.VERIFICATION_FAILED, BASE_CHANGED)
    if not process.is_main_process:
        del model  # free its GPU before the process group ends
        device.free_memory()
        process_group.shutdown()
        return None
    finish(session, fitted, model)
    weights = exact_resume.trained_weights(model) if is_sharded(session) else None
    if weights is not None:
        del model
        device.free_memory()
    process_group.shutdown()
    if weights is not None:
        model = load_whole_model(session, plan, tokenizer, weights)
    return TrainedModel(plan=plan, model=model, base_digest=base_digest)


def load_whole_model(session: Session, plan: Plan, tokenizer: Any, weights: dict[str, Any]) -> Any:
    """Load the unsharded base with an adapter of the trained weights, after a sharded training."""
    with phase("loading the whole model", "load"):
        model = add_adapter(session, plan, load_base(session, tokenizer, reload=True))
        sharding.load_trained_weights(model, weights)
    return model


def finish(session: Session, fitted: LoopResult, model: Any) -> None:
    """Load the weights that are to be published into the model, and write the metrics of all steps."""
    objectives.delete_reference_adapter(model)
    if fitted.best is not None:
        fitted.best.restore(model)
        best_step = fitted.best.history.step
        session.run.published_step = best_step
        session.run.derived_settings["published weights"] = f"of step {best_step}, after {fitted.last_step} steps"
    write_metrics(fitted.history, session.scratch / "metrics.jsonl")


def write_metrics(history: list[dict[str, Any]], path: Path) -> None:
    """Write the log entries of all attempts, one JSON object a line."""
    # Leave out transformers' summary at the end, which covers the last attempt only.
    steps = [entry for entry in history if "train_runtime" not in entry]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in steps), encoding="utf-8")


def describe_training(session: Session, plan: Plan, model: Any) -> None:
    """Log what is about to be trained, and note it for the report."""
    spec, run, processes = session.settings.job.spec, session.run, session.process.world_size
    training = spec.training
    run.parameters = count_parameters(model)
    run.derived_settings = {
        "device": device.device_name(),
        "precision": plan.precision,
        "gradient checkpointing": "on" if plan.gradient_checkpointing else "off",
        "optimizer": plan.optimizer,
        "compiled": "yes" if plan.compile else "no",
        "learning rate": f"{choose_learning_rate(spec):g}",
        "steps": str(plan.total_steps),
        "warm-up steps": str(plan.warmup_steps),
        "sequences per step": str(training.sequences_per_step(processes)),
        "a checkpoint every": f"{plan.save_steps} steps",
    }
    if run.choice:
        run.derived_settings["why this packing and batch"] = "; ".join(run.choice.why)
    if processes > 1:
        run.derived_settings |= {
            "processes": str(processes),
            "sequences trained twice in a pass": str(plan.repeated_sequences),
        }
    log.info(
        "%s trainable parameters; %d steps of %d × %d × %d sequences of at most %d tokens, learning rate %g, %s on %s",
        f"{run.parameters.trainable:,}",
        plan.total_steps,
        processes,
        training.batch_size,
        training.accumulation_steps,
        training.max_length,
        choose_learning_rate(spec),
        plan.precision,
        device.device_name(),
    )
