"""Estimate how many steps a job has, and how long they take, from counted operations and a GPU's speed."""

import math

from finetune_api.dataset import DatasetSource
from finetune_api.estimate.gpus import Gpu
from finetune_api.estimate.modules import Architecture
from finetune_api.estimate.objective import PASSES
from finetune_api.finetunejob import Objective, Training
from finetune_api.methods import Method

UTILISATION = 0.33
"""Fraction of a GPU's dense bf16 speed that fine-tuning reaches.

Source: LoRA on Llama-3.1-8B at 3,200 tokens/s, and on Llama-3.2-3B at 8,210, both on an A100.
"""
QUANTISED_SPEED = 0.66
"""Speed of QLoRA relative to LoRA on the same GPU: 2,100 and 3,200 tokens/s on an A100."""


def total_steps(training: Training, rows: int | None, processes: int = 1) -> int | None:
    """Count the optimizer steps, as the trainer does; None if they depend on an unknown number of rows."""
    if training.max_steps is not None:
        return training.max_steps
    if rows is None:
        return None
    batches = math.ceil(rows / (training.batch_size * processes))
    per_epoch = math.ceil(batches / training.accumulation_steps)
    return math.ceil((training.epochs or 1.0) * per_epoch)


def held_out_rows(rows: int, dataset: DatasetSource) -> int:
    """Count the rows of a dataset that are held out, as the trainer does.

    At least one row is, unless the held-out rows come from another file or split.
    """
    validation = dataset.validation
    if rows < 2 or (validation is not None and validation.fraction is None):
        return 0
    share = round(rows * validation.fraction) if validation and validation.fraction else min(round(rows / 10), 200)
    return min(max(share, 1), rows - 1)


def packed_rows(tokens: int, training: Training) -> int:
    """Return the number of rows that a number of tokens fills if they are packed without gaps."""
    return math.ceil(tokens / training.max_length)


def tokens_per_step(training: Training, processes: int = 1, objective: Objective = "sft") -> int:
    """Count the trained tokens of one optimizer step when every sequence has maxLength tokens."""
    return PASSES[objective].sequences * training.sequences_per_step(processes) * training.max_length


def operations_per_token(
    architecture: Architecture, method: Method, training: Training, objective: Objective = "sft"
) -> float:
    """Count the floating-point operations for one trained token.

    Each weight takes two operations forward, two for the gradient of its activations and, if it is trained, two for its
    own gradient (Kaplan et al. 2020, section 2.1); attention counts with its causal half. Frozen weights need no
    gradient, so that LoRA takes two thirds of full fine-tuning. dpo and kto add passes forward, of the reference above
    all.
    """
    block = method.config
    weights = sum(module.inputs * module.outputs for module in architecture.modules if module.is_linear)
    if architecture.experts:
        of_experts = sum(module.weight for module in architecture.modules if module.kind == "parameter")
        weights += of_experts * architecture.experts_per_token // architecture.experts
    length = training.max_length + block.prepended_tokens
    attention = 2 * architecture.layers * length * architecture.attention.query
    passes = 2 + (1 if block.trains_all_weights else 0) + (1 if training.gradient_checkpointing == "always" else 0)
    passes += PASSES[objective].forwards
    return passes * (2 * weights + attention)


def tokens_per_second(
    architecture: Architecture, method: Method, training: Training, gpu: Gpu, objective: Objective = "sft"
) -> float | None:
    """Estimate the tokens that one GPU trains in a second; None in fp32, for which there is no figure."""
    if training.precision == "fp32":
        return None
    speed = UTILISATION * gpu.flops / operations_per_token(architecture, method, training, objective)
    return speed * (QUANTISED_SPEED if method.quantization else 1)
