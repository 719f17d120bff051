"""Make TRL's trainer for the job's objective, with the plan's settings and exactly resumable checkpoints."""

import re
from typing import Any

import datasets  # type: ignore[import-untyped]
from accelerate import DistributedDataParallelKwargs  # type: ignore[import-untyped]
from transformers import PrinterCallback, TrainerCallback
from trl.data_utils import pack_dataset

from finetune_api.finetunejob import Training
from finetune_api.scheduler import SchedulerArgs
from finetune_trainer.checkpoints.exact_resume import with_exact_resume
from finetune_trainer.checkpoints.resuming import has_longest_first
from finetune_trainer.methods import adalora, adapted_model
from finetune_trainer.models import device
from finetune_trainer.runtime.logs import log
from finetune_trainer.session.plan import Plan, choose_learning_rate
from finetune_trainer.session.session import Session
from finetune_trainer.training import objectives
from finetune_trainer.training.row_order import LongestFirst, measure_lengths


def training_rows(rows: datasets.Dataset, training: Training) -> datasets.Dataset:
    """Return the training rows for TRL: the sequences, or with packing rows of several sequences."""
    if not training.packs:
        return rows
    packed = pack_dataset(rows, training.max_length, "bfd")
    log.info("packed %d sequences into %d rows", len(rows), len(packed))
    return packed


def has_separate_experts(model: Any) -> bool:
    """Return whether experts with trained weights are modules of their own, which a batch may not use."""
    return any(
        re.search(r"\.experts\.\d+\.", name) for name, weight in model.named_parameters() if weight.requires_grad
    )


def make_trainer(
    session: Session,
    plan: Plan,
    *,
    model: Any,
    tokenizer: Any,
    rows: datasets.Dataset,
    callbacks: list[TrainerCallback],
) -> Any:
    """Make TRL's trainer for the objective. It prints nothing, and reports to no service, by itself."""
    spec = session.settings.job.spec
    training, objective = spec.training, objectives.objective_of(spec)
    arguments = objective.config(
        output_dir=str(session.scratch),
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation_steps,
        max_steps=plan.total_steps,
        learning_rate=choose_learning_rate(spec),
        lr_scheduler_type=training.scheduler,
        lr_scheduler_kwargs=(training.scheduler_args or SchedulerArgs()).to_kwargs(
            training.scheduler, plan.total_steps
        ),
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
        logging_steps=plan.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=plan.save_steps,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **objective.settings,
    )
    trainer = with_exact_resume(objective.trainer)(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[adalora.RankAllocationCallback(), *callbacks],
    )
    # The search for weights without a gradient in each step is needed for experts that a batch does not use.
    trainer.accelerator.ddp_handler = DistributedDataParallelKwargs(
        find_unused_parameters=has_separate_experts(model), gradient_as_bucket_view=True
    )
    if has_longest_first(spec):
        step = training.sequences_per_step(session.process.world_size)
        trainer.train_sampler = LongestFirst(measure_lengths(rows), step, training.seed)
    trainer.remove_callback(PrinterCallback)
    adapted_model.to_float32(trainer.model)
    return trainer
