"""Check that the pod sees the GPUs that it asked for, so that no job trains on the CPU by mistake."""

import os
import warnings
from pathlib import Path

import torch

from finetune_api.finetunejob import Resources
from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import Failure

DRIVER_VERSION = Path("/proc/driver/nvidia/version")
CAUSES = (
    "Usual causes: the node's NVIDIA driver is older than PyTorch's CUDA; the pod needs podTemplate.runtimeClassName "
    "(often nvidia); resources.gpuResourceName is the resource of another vendor; the GPU or the node is broken"
)


def require_gpus(resources: Resources) -> None:
    """Check that PyTorch can use at least ``gpusPerNode`` GPUs.

    Raises:
        Failure: GPU_NOT_VISIBLE: it sees fewer. The message has the versions and the usual causes.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if visible < resources.gpus_per_node:
        raise Failure(
            Reason.GPU_NOT_VISIBLE,
            f"the pod asked for {resources.gpus_per_node} {resources.gpu_resource_name}, but PyTorch sees {visible}. "
            f"{_describe_environment([str(item.message) for item in caught])}. {CAUSES}",
            "spec.resources.gpusPerNode",
        )


def _describe_environment(cuda_warnings: list[str]) -> str:
    """Describe the versions and variables that decide whether PyTorch sees a GPU, and CUDA's warning."""
    driver = DRIVER_VERSION.read_text().splitlines()[0].strip() if DRIVER_VERSION.exists() else "none found"
    parts = [f"PyTorch {torch.__version__} for CUDA {torch.version.cuda or 'none'}", f"driver: {driver}"]
    parts += [
        f"{name}={os.environ[name]}"
        for name in ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
        if name in os.environ
    ]
    return "; ".join(parts + cuda_warnings[:1])
