"""Calculate ``status.estimate`` from the model's config.json, before a GPU is requested."""

from finetune_api.estimate.architecture import architecture_of, known
from finetune_api.estimate.checkpointing import resolve_checkpointing
from finetune_api.estimate.gpus import GPUS
from finetune_api.estimate.headers import architecture_from_headers
from finetune_api.estimate.memory import full_memory, job_memory
from finetune_api.estimate.modules import Architecture
from finetune_api.estimate.objective import method_of, model_of
from finetune_api.estimate.parameters import count
from finetune_api.estimate.speed import total_steps
from finetune_api.finetunejob import Estimate, FineTuneJobSpec
from finetune_trainer.models.base_files import ModelMetadata
from finetune_trainer.models.modules import list_linear_modules


def make_estimate(spec: FineTuneJobSpec, metadata: ModelMetadata) -> Estimate:
    """Estimate the parameters, the GPU memory if the job uses GPUs, and the steps if the spec gives them.

    Args:
        spec: The job's spec.
        metadata: The model as transformers loads it (finetune_trainer.models.loaded_tensors).

    Raises:
        UnknownArchitectureError: The architecture is not known.
        TargetError: The target modules do not exist.
        NotCountedError: The parameters of this method cannot be counted. All three errors are ValueErrors.
    """
    architecture = find_architecture(metadata)
    counts = count(model_of(spec.objective, architecture), method_of(spec.objective, spec.method))
    processes = spec.resources.processes
    least_memory = resolve_checkpointing(spec, architecture, gpu_bytes=0)
    needed = job_memory(architecture, least_memory).total
    compared = full_memory(architecture, least_memory).total if spec.evaluation.compare_with_full else None
    return Estimate(
        trainable_parameters=counts.trainable,
        total_parameters=counts.total,
        gpu_memory_bytes=needed if spec.resources.gpus_per_node else None,
        total_steps=total_steps(spec.training, rows=None, processes=processes),
        comparison_gpu_memory_bytes=compared if spec.resources.gpus_per_node else None,
    )


def find_architecture(metadata: ModelMetadata) -> Architecture:
    """Return the architecture by config.json or, without a closed form, by the headers of the weights.

    Raises:
        ValueError: Neither describes it, or they contradict each other.
    """
    if metadata.config.get("model_type") in known():
        architecture = architecture_of(metadata.config)
        check_sizes(architecture, metadata)
        return architecture
    return architecture_from_headers(metadata.config, {name: tensor.shape for name, tensor in metadata.tensors.items()})


def list_warnings(estimate: Estimate) -> list[str]:
    """List warnings for the user about an estimate."""
    needed, largest = estimate.comparison_gpu_memory_bytes or 0, GPUS[-1]
    if needed <= largest.bytes:
        return []
    return [
        f"spec.evaluation.compareWithFull: full fine-tuning needs about {needed / 2**30:.0f} GiB of GPU memory, "
        f"more than the {largest.bytes / 2**30:.0f} GiB of a {largest.name}: on one GPU the report will most likely "
        "say that it did not fit. The adapter is published in any case"
    ]


def check_sizes(architecture: Architecture, metadata: ModelMetadata) -> None:
    """Check that the files have the linear layers that config.json describes.

    Raises:
        ValueError: The sizes differ.
    """
    described = sum(m.weight for m in architecture.modules if m.is_linear and m is not architecture.head)
    stored = sum(rows * columns for rows, columns in list_linear_modules(metadata.tensors).values())
    if described != stored:
        raise ValueError(
            f"by config.json the model's linear layers have {described:,} weights, but the files have {stored:,}"
        )
