"""Choose the options that make a step faster or smaller without changing its result."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from finetune_api import combinations
from finetune_api.estimate.architecture import architecture_of
from finetune_api.estimate.checkpointing import resolve_checkpointing, with_checkpointing
from finetune_api.estimate.speed import operations_per_token, tokens_per_step
from finetune_api.finetunejob import FineTuneJobSpec, Training
from finetune_api.reasons import Reason
from finetune_trainer.models import device
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log

MIN_OPERATIONS_TO_COMPILE = 2e17
"""Operations of a run for which one or two minutes of compilation are worthwhile.

They take an H100 ten minutes at a third of its peak, which fine-tuning reaches.
"""


def uses_gradient_checkpointing(spec: FineTuneJobSpec, model: Path) -> bool:
    """Return whether activations are recomputed; ``auto``: if the GPU is too small otherwise, or may be."""
    mode = spec.training.gradient_checkpointing
    if mode != "auto" or not device.has_gpu():
        return mode == "always"
    try:
        architecture = architecture_of(json.loads((model / "config.json").read_text(encoding="utf-8")))
        return resolve_checkpointing(spec, architecture, device.gpu_bytes()).training.gradient_checkpointing == "always"
    except ValueError as error:
        log.info("gradientCheckpointing auto: there is no estimate of the memory (%s)", error)
        return combinations.allows(with_checkpointing(spec, enabled=True))


def choose_optimizer(training: Training) -> str:
    """Return transformers' name of the optimizer; ``auto`` is AdamW, on a GPU in one fused kernel."""
    if training.optimizer != "auto":
        return training.optimizer
    return "adamw_torch_fused" if device.has_gpu() else "adamw_torch"


def uses_compile(spec: FineTuneJobSpec, model: Path, steps: int) -> bool:
    """Return whether the layers are compiled; ``auto``: only on a GPU, in a run that is long enough.

    Raises:
        Failure: The job asks for compilation, and there is no compiler.
    """
    mode, method = spec.training.compile, spec.method.config
    if spec.training.sharding != "none":
        return False  # compiled layers were not tested with sharded weights
    if mode == "always" and find_compiler() is None:
        raise Failure(
            Reason.SPEC_INVALID,
            "torch.compile needs a C++ compiler, and there is none here: "
            "choose auto, or an image that has g++ (spec.podTemplate.image)",
            "spec.training.compile",
        )
    if mode != "auto" or not device.has_gpu() or find_compiler() is None or not method.gains_from_compilation:
        return mode == "always"
    try:
        architecture = architecture_of(json.loads((model / "config.json").read_text(encoding="utf-8")))
    except ValueError:
        return False
    # Recomputation is left out, because it may change after an attempt that ran out of memory.
    plain = spec.training.model_copy(update={"gradient_checkpointing": "never"})
    operations = operations_per_token(architecture, spec.method, plain, spec.objective)
    tokens = steps * tokens_per_step(spec.training, objective=spec.objective)
    return tokens * operations >= MIN_OPERATIONS_TO_COMPILE


def find_compiler() -> str | None:
    """Return the compiler that torch.compile uses: C++ on a CPU, or C on a GPU, where Triton needs it."""
    compilers = ("CC", "gcc", "clang") if device.has_gpu() else ("CXX", "g++", "clang++")
    return shutil.which(os.environ.get(compilers[0]) or compilers[1]) or shutil.which(compilers[2])


@dataclass
class Compilation:
    """The result of compiling: ``failures`` is the number of parts that could not be compiled."""

    failures: int = 0

    def describe(self) -> str | None:
        """Return a warning about the parts that ran uncompiled; None if there are none."""
        if not self.failures:
            return None
        return f"spec.training.compile: {self.failures} parts of the layers could not be compiled and ran as they are"


@contextmanager
def compile_layers(model: Any, *, on: bool, required: bool) -> Iterator[Compilation]:
    """Compile the layers one by one within this block; their names and weights do not change.

    The layers share one compilation. Sequence lengths are dynamic, so that the result does not depend on which batch
    comes first. A layer that cannot be compiled runs as it is, unless compilation is ``required``.
    """
    compilation, frames = Compilation(), torch._dynamo.utils.counters["frames"] if on else {}
    failed_before = frames.get("total", 0) - frames.get("ok", 0)
    layers = [module for module in model.modules() if on and isinstance(module, GradientCheckpointingLayer)]
    before = torch._dynamo.config.suppress_errors if layers else False
    try:
        for layer in layers:
            torch._dynamo.config.suppress_errors = not required
            layer.compile(dynamic=True)
        yield compilation
    finally:
        compilation.failures = frames.get("total", 0) - frames.get("ok", 0) - failed_before
        for layer in layers:
            layer._compiled_call_impl = None
            torch._dynamo.config.suppress_errors = before
