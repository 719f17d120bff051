"""What makes a step faster, or smaller, and leaves its result alone: which of it this job gets on this machine."""

import json
from pathlib import Path

from finetune_api.estimate.architecture import architecture_of
from finetune_api.estimate.recomputing import settled
from finetune_api.finetunejob import FineTuneJobSpec, Training
from finetune_trainer import model as models
from finetune_trainer.logs import log


def recomputes(spec: FineTuneJobSpec, model: Path) -> bool:
    """Whether activations are recomputed in the backward pass: of itself only where the estimate says that the GPU is too small without it."""
    wanted = spec.training.gradient_checkpointing
    if wanted != "auto" or not models.has_gpu():
        return wanted == "always"
    try:
        architecture = architecture_of(json.loads((model / "config.json").read_text(encoding="utf-8")))
        return settled(spec, architecture, models.gpu_bytes()).training.gradient_checkpointing == "always"
    except ValueError as error:
        log.info("gradientCheckpointing auto is off, because there is no estimate of the memory: %s", error)
        return False


def optimizer(training: Training) -> str:
    """transformers' name of the optimizer: AdamW in one kernel on a GPU, which needs no memory while it steps."""
    if training.optimizer != "auto":
        return training.optimizer
    return "adamw_torch_fused" if models.has_gpu() else "adamw_torch"
