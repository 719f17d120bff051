"""Which device there is, in which precision it computes, and what to do where its memory is too small."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from finetune_api.finetunejob import Training
from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


Result = TypeVar("Result")


def has_gpu() -> bool:
    """Whether this process has an NVIDIA GPU."""
    return torch.cuda.is_available()


def gpu_bytes() -> int:
    """The GPU's memory."""
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def device_name() -> str:
    """The device for people."""
    return torch.cuda.get_device_name() if has_gpu() else f"CPU ({torch.get_num_threads()} threads)"


def choose_precision(training: Training) -> str:
    """``bf16``, ``fp16`` or ``fp32``. Raises Failure for fp16 without a GPU."""
    if training.precision == "auto":
        return "bf16" if has_gpu() and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if training.precision == "fp16" and not has_gpu():
        raise Failure(Reason.SPEC_INVALID, "fp16 needs a GPU: choose auto, bf16 or fp32", "spec.training.precision")
    return training.precision


def run_on_gpu_or_cpu(work: Callable[[bool], Result]) -> Result:
    """What ``work`` makes, told whether to keep to the CPU: only where the GPU is too small.

    For what follows the training, where a smaller batch would not help and another attempt would only come here again: a base that was trained quantised is
    larger as it is served.
    """
    try:
        return work(False)
    except torch.OutOfMemoryError:
        log.warning("the base does not fit into the GPU as it is served: going on on the CPU, which takes longer")
    free_memory()
    return work(True)


def free_memory() -> None:
    """Give memory back that is no longer referred to."""
    gc.collect()
    if has_gpu():
        torch.cuda.empty_cache()
