"""Plan the training before its first step: number of steps, intervals, precision and optimizer."""

import math
from dataclasses import dataclass
from pathlib import Path

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.reasons import Reason
from finetune_trainer.models import device, performance
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings


@dataclass(frozen=True)
class Plan:
    """The numbers of a training that follow from settings, data and machine.

    ``save_steps`` and ``eval_steps`` are the steps between two checkpoints and two evaluations; None for no evaluation.
    ``gradient_checkpointing`` and ``compile`` say whether they are on, by the user's choice or automatically.
    ``repeated_sequences`` is the number of sequences that an epoch has twice, so that each process has the same number
    of batches.
    """

    precision: str
    total_steps: int
    warmup_steps: int
    save_steps: int
    eval_steps: int | None
    logging_steps: int
    gradient_checkpointing: bool
    optimizer: str
    compile: bool
    repeated_sequences: int = 0


def make_plan(settings: Settings, sequences: int, model: Path) -> Plan:
    """Plan steps, intervals and performance options.

    A step is one update of the adapter. In a step each process takes batch size × accumulation steps sequences.

    Args:
        settings: The attempt's settings.
        sequences: Number of training sequences.
        model: Directory of the base model.

    Raises:
        Failure: SPEC_INVALID: this machine does not have what the optimizer, the precision or the compilation needs.
    """
    spec, training = settings.job.spec, settings.job.spec.training
    if training.optimizer == "paged_adamw_8bit" and not device.has_gpu():
        raise Failure(Reason.SPEC_INVALID, "paged_adamw_8bit needs a GPU: choose auto", "spec.training.optimizer")
    processes = spec.resources.processes
    global_batch = training.batch_size * processes
    batches = math.ceil(sequences / global_batch)
    per_epoch = math.ceil(batches / training.accumulation_steps)
    total = training.max_steps or math.ceil((training.epochs or 1.0) * per_epoch)
    save_steps = spec.checkpoint.every_steps or min(max(total // 10, 1), 500)
    if spec.checkpoint.every_minutes is not None:
        save_steps = total  # the callback saves the checkpoints in between
    return Plan(
        precision=device.choose_precision(training),
        total_steps=total,
        warmup_steps=math.ceil(training.warmup_ratio * total),
        save_steps=save_steps,
        eval_steps=per_epoch if spec.evaluation.every_epoch else spec.evaluation.every_steps,
        # the loss is logged, and checked, at least once before each checkpoint
        logging_steps=max(1, min(total // 100, 50, save_steps)),
        gradient_checkpointing=performance.uses_gradient_checkpointing(spec, model),
        optimizer=performance.choose_optimizer(training),
        compile=performance.uses_compile(spec, model, total),
        repeated_sequences=batches * global_batch - sequences if processes > 1 else 0,
    )


def choose_learning_rate(spec: FineTuneJobSpec) -> float:
    """Return the user's learning rate or, if there is none, the method's default."""
    return spec.training.learning_rate or spec.method.config.default_learning_rate
