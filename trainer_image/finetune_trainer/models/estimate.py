"""Calculate ``status.estimate`` from the model's config.json, before a GPU is requested."""

from finetune_api.estimate.architecture import architecture_of, known
from finetune_api.estimate.checkpointing import resolve_checkpointing
from finetune_api.estimate.gpus import GPUS
from finetune_api.estimate.headers import architecture_from_headers
from finetune_api.estimate.memory import full_memory, memory
from finetune_api.estimate.modules import Architecture
from finetune_api.estimate.parameters import count
from finetune_api.estimate.speed import total_steps
from finetune_api.finetunejob import Estimate, FineTuneJobSpec
from finetune_trainer.models.base_files import ModelMetadata
from finetune_trainer.models.modules import list_linear_modules


def make_estimate(spec: FineTuneJobSpec, facts: ModelMetadata) -> Estimate:
    """Estimate the parameters, the GPU memory if the job uses GPUs, and the steps if the spec gives them.

    Raises:
        UnknownArchitectureError: The architecture is not known.
        TargetError: The target modules do not exist.
        NotCountedError: The parameters of this method cannot be counted. All three are ValueErrors.
    """
    architecture = find_architecture(facts)
    counts = count(architecture, spec.method)
    evaluates = spec.evaluation.recurs
    processes = spec.resources.processes
    least = resolve_checkpointing(spec, architecture, gpu_bytes=0)
    needed = memory(architecture, spec.method, least.training, evaluates=evaluates, processes=processes).total
    compared = full_memory(architecture, least.training).total if spec.evaluation.compare_with_full else None
    return Estimate(
        trainable_parameters=counts.trainable,
        total_parameters=counts.total,
        gpu_memory_bytes=needed if spec.resources.gpus_per_node else None,
        total_steps=total_steps(spec.training, rows=None, processes=processes),
        comparison_gpu_memory_bytes=compared if spec.resources.gpus_per_node else None,
    )


def find_architecture(facts: ModelMetadata) -> Architecture:
    """Return the architecture that config.json describes or, without a closed form, the one of the weights' headers.

    Raises:
        ValueError: Neither tells it, or they contradict one another.
    """
    if facts.config.get("model_type") in known() or facts.config.get("quantization_config"):
        architecture = architecture_of(facts.config)
        check_sizes(architecture, facts)
        return architecture
    return architecture_from_headers(facts.config, {name: tensor.shape for name, tensor in facts.tensors.items()})


def list_warnings(estimate: Estimate) -> list[str]:
    """List warnings for the user about an estimate."""
    needed, largest = estimate.comparison_gpu_memory_bytes or 0, GPUS[-1]
    if needed <= largest.bytes:
        return []
    return [
        f"spec.evaluation.compareWithFull: full fine-tuning needs about {needed / 2**30:.0f} GiB of GPU memory, "
        f"more than the {largest.bytes / 2**30:.0f} GiB of a {largest.name}: on one GPU the report will most likely "
        "say that it did not fit. The adapter is published all the same"
    ]


def check_sizes(architecture: Architecture, facts: ModelMetadata) -> None:
    """Check that the files have the linear layers that config.json describes.

    Raises:
        ValueError: The sizes differ.
    """
    if facts.config.get("quantization_config"):
        return
    described = sum(m.weight for m in architecture.modules if m.is_linear and m is not architecture.head)
    linear = list_linear_modules(facts.tensors).items()
    stored = sum(inputs * outputs for name, (inputs, outputs) in linear if not (architecture.experts and _routes(name)))
    if described != stored:
        raise ValueError(
            f"by config.json the model's linear layers have {described:,} weights, but the files have {stored:,}"
        )


def _routes(module: str) -> bool:
    """Return whether a matrix of the files is an expert's or a router's, which is no linear layer in transformers."""
    parts = module.split(".")
    return "experts" in parts or parts[-1] in ("gate", "router")
