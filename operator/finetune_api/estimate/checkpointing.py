"""Decide whether a job uses gradient checkpointing: with ``auto`` only if the GPU is too small without it."""

from finetune_api import combinations
from finetune_api.estimate.memory import job_memory
from finetune_api.estimate.modules import Architecture
from finetune_api.finetunejob import FineTuneJobSpec

TIGHT = 0.9
"""Fraction of a GPU's memory above which a job fits only tightly, because the estimate is not exact."""


def resolve_checkpointing(spec: FineTuneJobSpec, architecture: Architecture, gpu_bytes: int) -> FineTuneJobSpec:
    """Return the spec with gradientCheckpointing always or never, as the trainer decides for a GPU.

    Args:
        spec: The job's spec.
        architecture: The base model.
        gpu_bytes: Memory of the GPU in bytes.

    Raises:
        TargetError: The method names a module that the model does not have.
        NotCountedError: There is no closed form for the method on this model.
    """
    if spec.training.gradient_checkpointing != "auto":
        return spec
    enabled, disabled = with_checkpointing(spec, enabled=True), with_checkpointing(spec, enabled=False)
    if not combinations.allows(enabled):
        return disabled
    return enabled if job_memory(architecture, disabled).total > TIGHT * gpu_bytes else disabled


def with_checkpointing(spec: FineTuneJobSpec, *, enabled: bool) -> FineTuneJobSpec:
    """Return the spec with gradientCheckpointing always, or never."""
    training = spec.training.model_copy(update={"gradient_checkpointing": "always" if enabled else "never"})
    return spec.model_copy(update={"training": training})
