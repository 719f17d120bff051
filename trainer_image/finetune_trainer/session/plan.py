"""What follows from settings, data and machine before the first step."""

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
    """What follows from settings, data and machine before the first step."""

    precision: str
    total_steps: int
    warmup_steps: int
    save_every: int
    log_every: int
    gradient_checkpointing: bool
    """Whether it is on, whoever decided that."""
    optimizer: str
    compile: bool
    """Whether the layers are compiled, likewise."""
    trained_twice: int = 0
    """Sequences that several processes take from a pass's beginning at its end, so that each of them has as many batches."""


def make_plan(settings: Settings, sequences: int, model: Path) -> Plan:
    """Steps, intervals and switches; ``model`` is the base's directory. A step is one update of the adapter: accumulation × batch sequences of each process."""
    spec, training = settings.job.spec, settings.job.spec.training
    if training.optimizer == "paged_adamw_8bit" and not device.has_gpu():
        raise Failure(Reason.SPEC_INVALID, "paged_adamw_8bit needs a GPU: choose auto", "spec.training.optimizer")
    processes = spec.resources.processes
    together = training.per_device_batch_size * processes
    batches = math.ceil(sequences / together)
    per_epoch = math.ceil(batches / training.gradient_accumulation_steps)
    total = training.max_steps or math.ceil((training.epochs or 1.0) * per_epoch)
    save_every = spec.checkpoint.every_steps or min(max(total // 10, 1), 500)
    return Plan(
        precision=device.choose_precision(training),
        total_steps=total,
        warmup_steps=math.ceil(training.warmup_ratio * total),
        save_every=save_every,
        # no checkpoint is saved whose loss has not been looked at
        log_every=max(1, min(total // 100, 50, save_every)),
        gradient_checkpointing=performance.uses_gradient_checkpointing(spec, model),
        optimizer=performance.choose_optimizer(training),
        compile=performance.uses_compile(spec, model, total),
        trained_twice=batches * together - sequences if processes > 1 else 0,
    )


def learning_rate(spec: FineTuneJobSpec) -> float:
    """The one that the user chose, or the method's own."""
    return spec.training.learning_rate or spec.method.config.default_learning_rate
