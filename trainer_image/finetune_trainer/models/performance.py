"""What makes a step faster, or smaller, and leaves its result alone: which of it this job gets on this machine."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from finetune_api.estimate.architecture import architecture_of
from finetune_api.estimate.checkpointing import resolve_checkpointing
from finetune_api.estimate.speed import operations_per_token, tokens_per_step
from finetune_api.finetunejob import FineTuneJobSpec, Training
from finetune_api.reasons import Reason
from finetune_trainer.models import device
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log

WORTH_COMPILING = 2e17
"""Operations of a run that repays one or two minutes of compiling: ten minutes of an H100 at the third of its peak that fine-tuning reaches."""


def uses_gradient_checkpointing(spec: FineTuneJobSpec, model: Path) -> bool:
    """Whether activations are recomputed in the backward pass: of itself only where the estimate says that the GPU is too small without it."""
    wanted = spec.training.gradient_checkpointing
    if wanted != "auto" or not device.has_gpu():
        return wanted == "always"
    try:
        architecture = architecture_of(json.loads((model / "config.json").read_text(encoding="utf-8")))
        return resolve_checkpointing(spec, architecture, device.gpu_bytes()).training.gradient_checkpointing == "always"
    except ValueError as error:
        log.info("gradientCheckpointing auto is off, because there is no estimate of the memory: %s", error)
        return False


def choose_optimizer(training: Training) -> str:
    """Return the name of the optimizer in transformers: for `auto` AdamW in one kernel on a GPU."""
    if training.optimizer != "auto":
        return training.optimizer
    return "adamw_torch_fused" if device.has_gpu() else "adamw_torch"


def uses_compile(spec: FineTuneJobSpec, model: Path, steps: int) -> bool:
    """Whether the layers are compiled: of itself only on a GPU, in a run that is long enough. Raises Failure where it is asked for and cannot be."""
    wanted, method = spec.training.compile, spec.method.config
    if spec.training.sharding != "none":
        return False  # compiled layers were not tried with weights that come and go
    if wanted == "always" and compiler() is None:
        raise Failure(
            Reason.SPEC_INVALID,
            "torch.compile needs a C++ compiler, and there is none here: choose auto, or an image that has g++ (spec.podTemplate.image)",
            "spec.training.compile",
        )
    if wanted != "auto" or not device.has_gpu() or compiler() is None or not method.gains_from_compilation:
        return wanted == "always"
    try:
        architecture = architecture_of(json.loads((model / "config.json").read_text(encoding="utf-8")))
    except ValueError:
        return False
    # without what is recomputed, so that the ladder does not change it in the middle of a run
    plain = spec.training.model_copy(update={"gradient_checkpointing": "never"})
    operations = operations_per_token(architecture, spec.method, plain)
    return steps * tokens_per_step(spec.training) * operations >= WORTH_COMPILING


def compiler() -> str | None:
    """The compiler that torch.compile would call: of C++ for a CPU; a GPU's kernels are made by Triton, which needs one of C."""
    named = ("CC", "gcc", "clang") if device.has_gpu() else ("CXX", "g++", "clang++")
    return shutil.which(os.environ.get(named[0]) or named[1]) or shutil.which(named[2])


@contextmanager
def compiled_layers(model: Any, *, on: bool, required: bool) -> Iterator[None]:
    """Within it the layers run compiled, one by one, so that all of them share one short compilation; names and weights stay as they are.

    Lengths are no part of what is compiled, so that it does not hang on which batch comes first. A layer that cannot be compiled runs as it is, unless
    that is ``required``.
    """
    layers = [module for module in model.modules() if on and isinstance(module, GradientCheckpointingLayer)]
    before = torch._dynamo.config.suppress_errors if layers else False
    try:
        for layer in layers:
            torch._dynamo.config.suppress_errors = not required
            layer.compile(dynamic=True)
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
            torch._dynamo.config.suppress_errors = before
