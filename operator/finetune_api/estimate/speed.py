"""How many steps, and how long they take: counted operations over what a GPU is known to reach."""

import math

from finetune_api.dataset import DatasetSource
from finetune_api.estimate.activations import virtual_tokens
from finetune_api.estimate.gpus import Gpu
from finetune_api.estimate.modules import Architecture
from finetune_api.finetunejob import Training
from finetune_api.methods import Full, Method

UTILISATION = 0.33
"""Part of a GPU's dense bf16 products that a fine-tuning reaches: LoRA on Llama-3.1-8B at 3,200 tokens/s, and on Llama-3.2-3B at 8,210, both on an A100."""
QUANTISED_SPEED = 0.66
"""QLoRA against LoRA on the same GPU: 2,100 and 3,200 tokens/s on an A100."""


def total_steps(training: Training, rows: int | None, processes: int = 1) -> int | None:
    """Optimizer steps, as the trainer counts them; None if they depend on a number of rows that is not known."""
    if training.max_steps is not None:
        return training.max_steps
    if rows is None:
        return None
    batches = math.ceil(rows / (training.per_device_batch_size * processes))
    per_epoch = math.ceil(batches / training.gradient_accumulation_steps)
    return math.ceil((training.epochs or 1.0) * per_epoch)


def held_out_rows(rows: int, dataset: DatasetSource) -> int:
    """How many of a dataset's rows are not trained on: at least one, unless the held-out rows come from elsewhere (finetune_trainer/data.py)."""
    validation = dataset.validation
    if rows < 2 or (validation is not None and validation.fraction is None):
        return 0
    wanted = round(rows * validation.fraction) if validation and validation.fraction else min(round(rows / 10), 200)
    return min(max(wanted, 1), rows - 1)


def packed_rows(tokens: int, training: Training) -> int:
    """Rows that so many tokens make when they are packed without loss."""
    return math.ceil(tokens / training.max_length)


def tokens_per_step(training: Training, processes: int = 1) -> int:
    """Tokens of one optimizer step when every row is as long as it may be."""
    return processes * training.per_device_batch_size * training.gradient_accumulation_steps * training.max_length


def operations_per_token(architecture: Architecture, method: Method, training: Training) -> float:
    """Products and sums for one trained token: two for each weight forward, two for the gradients of activations, two for those of trained weights.

    Kaplan et al. 2020, section 2.1; of attention the causal half. Frozen weights need no gradient, so LoRA takes two thirds of full fine-tuning.
    """
    weights = sum(module.inputs * module.outputs for module in architecture.modules if module.is_linear)
    length = training.max_length + virtual_tokens(method.config)
    attention = 2 * architecture.layers * length * architecture.attention.query
    passes = (
        2 + (1 if isinstance(method.config, Full) else 0) + (1 if training.gradient_checkpointing == "always" else 0)
    )
    return passes * (2 * weights + attention)


def tokens_per_second(architecture: Architecture, method: Method, training: Training, gpu: Gpu) -> float | None:
    """Tokens that one GPU trains in a second; None in fp32, for which there is no figure."""
    if training.precision == "fp32":
        return None
    speed = UTILISATION * gpu.flops / operations_per_token(architecture, method, training)
    return speed * (QUANTISED_SPEED if method.quantization else 1)
