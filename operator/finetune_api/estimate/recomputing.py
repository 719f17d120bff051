"""Whether activations are recomputed in the backward pass (gradient checkpointing): for ``auto`` only where a GPU is too small without."""

from finetune_api import combinations
from finetune_api.estimate.memory import memory
from finetune_api.estimate.modules import Architecture
from finetune_api.finetunejob import FineTuneJobSpec

TIGHT = 0.9
"""A need above this part of a GPU's memory is called tight: the estimate is not exact."""


def settled(spec: FineTuneJobSpec, architecture: Architecture, gpu_bytes: int) -> FineTuneJobSpec:
    """The spec with gradientCheckpointing always or never, as a GPU of so much memory has it. Raises TargetError and NotCountedError."""
    if spec.training.gradient_checkpointing != "auto":
        return spec
    recomputed = with_recomputing(spec, on=True)
    plain = with_recomputing(spec, on=False)
    if not combinations.allows(recomputed):
        return plain
    evaluates = spec.evaluation.every_steps is not None
    number = spec.resources.processes
    needed = memory(architecture, spec.method, plain.training, evaluates=evaluates, processes=number).total
    return recomputed if needed > TIGHT * gpu_bytes else plain


def with_recomputing(spec: FineTuneJobSpec, *, on: bool) -> FineTuneJobSpec:
    """The spec with gradientCheckpointing always, or never."""
    training = spec.training.model_copy(update={"gradient_checkpointing": "always" if on else "never"})
    return spec.model_copy(update={"training": training})
