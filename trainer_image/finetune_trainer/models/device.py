"""Find the device and its precision, and free its memory or go on without it if it is full."""

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
    """Return whether this process has an NVIDIA GPU."""
    return torch.cuda.is_available()


def gpu_bytes() -> int:
    """Return the size of the GPU's memory."""
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def device_name() -> str:
    """Return the name of the device for people."""
    return torch.cuda.get_device_name() if has_gpu() else f"CPU ({torch.get_num_threads()} threads)"


def choose_precision(training: Training) -> str:
    """Return the precision of the training: ``bf16``, ``fp16`` or ``fp32``.

    Raises:
        Failure: The job asks for fp16 without a GPU, or for bf16 on a GPU that has none.
    """
    has_bf16 = has_gpu() and torch.cuda.is_bf16_supported(including_emulation=False)
    if training.precision == "auto":
        return "bf16" if has_bf16 else "fp16" if has_gpu() else "fp32"
    if training.precision == "fp16" and not has_gpu():
        raise Failure(Reason.SPEC_INVALID, "fp16 needs a GPU: choose auto, bf16 or fp32", "spec.training.precision")
    if training.precision == "bf16" and has_gpu() and not has_bf16:
        raise Failure(
            Reason.SPEC_INVALID,
            f"{device_name()} has no bf16: choose auto or fp16, or a GPU since Ampere",
            "spec.training.precision",
        )
    return training.precision


def run_on_gpu_or_cpu(work: Callable[[bool], Result]) -> Result:
    """Call ``work(False)``, and ``work(True)``, which must use the CPU, if the GPU is too small.

    This is for the steps after the training: another attempt with a smaller batch would fail in the same way, because a
    base that was trained quantized is larger when it is served.
    """
    try:
        return work(False)
    except torch.OutOfMemoryError:
        log.warning("the base does not fit into the GPU as it is served: going on on the CPU, which takes longer")
    free_memory()
    return work(True)


def free_memory() -> None:
    """Free memory that nothing refers to any more."""
    gc.collect()
    if has_gpu():
        torch.cuda.empty_cache()
