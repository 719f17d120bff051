"""Prepare the environment before other libraries are imported: threads, GPUs, and quiet logs."""

import importlib.metadata
import os
import sys
from collections.abc import Mapping
from pathlib import Path


def library_environment(environment: Mapping[str, str], processes: int = 1) -> dict[str, str]:
    """Return the environment variables that the libraries must find before they are imported.

    Args:
        environment: The variables as they are now.
        processes: How many processes train together on this machine.
    """
    threads = environment.get("OMP_NUM_THREADS") or str(max(cpu_limit() // processes, 1))
    allocator = environment.get("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    gpus = environment.get("CUDA_VISIBLE_DEVICES", ",".join(str(number) for number in range(processes)))
    return {
        "OMP_NUM_THREADS": threads,
        # Threads that spin while they wait take the processors from others: PASSIVE halves the time on a busy node.
        "OMP_WAIT_POLICY": environment.get("OMP_WAIT_POLICY", "PASSIVE"),
        # Without this, transformers would use all GPUs of a workstation, each with a batch of its own.
        "CUDA_VISIBLE_DEVICES": ",".join(gpus.split(",")[:processes]),
        # With this, memory that was freed in pieces can be used for larger tensors.
        **({} if "PYTORCH_CUDA_ALLOC_CONF" in environment else {"PYTORCH_ALLOC_CONF": allocator}),
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "BITSANDBYTES_NOWELCOME": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_ERROR_REPORTING": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        # DistributedDataParallel would warn in each process if all parameters are used, as in most models.
        "TORCH_CPP_LOG_LEVEL": environment.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
    }


def hide_package(name: str) -> None:
    """Hide a package from this process.

    Transformers and TRL import wandb wherever they find it, which takes a second.
    """
    sys.modules[name] = None  # type: ignore[assignment]


def cpu_limit() -> int:
    """Return how many threads can run at once in this container, at least 1.

    This is its CPU limit or, if that is lower, the number of CPUs that it may use.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = _read_quota(Path("/sys/fs/cgroup/cpu.max")) or _read_v1_quota(Path("/sys/fs/cgroup/cpu"))
    return max(1, min(allowed, quota)) if quota else allowed


def _read_quota(path: Path) -> int | None:
    """Return the CPU limit of cgroup v2, rounded up to whole CPUs; None if there is none."""
    if not path.is_file():
        return None
    quota, _, period = path.read_text(encoding="utf-8").strip().partition(" ")
    return None if quota == "max" else -(-int(quota) // int(period))


def _read_v1_quota(directory: Path) -> int | None:
    """Return the CPU limit of cgroup v1, rounded up to whole CPUs; None if there is none."""
    quota, period = directory / "cpu.cfs_quota_us", directory / "cpu.cfs_period_us"
    if not quota.is_file() or int(quota.read_text(encoding="utf-8")) <= 0:
        return None
    return -(-int(quota.read_text(encoding="utf-8")) // int(period.read_text(encoding="utf-8")))


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that determine the adapter."""
    names = ("accelerate", "bitsandbytes", "finetune-operator", "peft", "tokenizers", "torch", "transformers", "trl")
    return {name: importlib.metadata.version(name) for name in names}
