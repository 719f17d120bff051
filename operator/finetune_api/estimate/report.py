"""Build the complete estimate of a job: a value to print for people or as JSON."""

from typing import Any, Literal

from pydantic import Field

from finetune_api.base import Model
from finetune_api.estimate.architecture import architecture_of
from finetune_api.estimate.checkpointing import TIGHT, resolve_checkpointing
from finetune_api.estimate.defaults import choose_micro_step, choose_sequences, split_step
from finetune_api.estimate.gpus import GPUS, Gpu
from finetune_api.estimate.memory import GIB, Memory, full_memory, job_memory
from finetune_api.estimate.modules import Architecture
from finetune_api.estimate.objective import PASSES, method_of, model_of
from finetune_api.estimate.parameters import count
from finetune_api.estimate.remedies import Change, propose_changes
from finetune_api.estimate.shapes import Config
from finetune_api.estimate.speed import (
    QUANTISED_SPEED,
    UTILISATION,
    held_out_rows,
    packed_rows,
    tokens_per_second,
    tokens_per_step,
    total_steps,
)
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.reductions import smallest_batch

Fits = Literal["yes", "tight", "no"]
MANY_ROWS = 10**6
"""Rows to assume if their number is unknown: enough for the largest step."""


class MemoryEstimate(Model):
    """Bytes on one GPU, by part, at the moment of a step that needs the most."""

    weights: int = Field(description="The base's weights. With full fine-tuning, the trained weights.")
    adapter: int = Field(description="Trained parameters beside the base, in fp32, and the method's own buffers.")
    reference: int = Field(description="Frozen copy of the adapter, or of the model, with which dpo and kto compare.")
    gradients: int = Field(description="Gradients of the trained parameters, in fp32.")
    optimizer: int = Field(description="State of the optimizer.")
    activations: int = Field(description="Saved for the backward pass, and scratch of the layer that runs.")
    loss: int = Field(
        description="A tile of logits, and the gradient of the last hidden states. 0 if another moment needs more."
    )
    communication: int = Field(description="Buffers of NCCL. 0 for one GPU.")
    overhead: int = Field(description="CUDA context, workspaces and fragmentation of the allocator.")
    total: int = Field(description="Sum of the parts: the GPU must have this much.")
    verification: int = Field(
        description="Needed after training, to load the base again in bf16 and evaluate it. "
        "If the GPU has less, the CPU does this."
    )


class GpuEstimate(Model):
    """One GPU of the table."""

    name: str = Field(description="Its name.")
    bytes: int = Field(description="Memory that a process can use.")
    fits: Fits = Field(description="tight: the job needs more than nine tenths of it, and the estimate is not exact.")
    gradient_checkpointing: bool = Field(
        description="Whether activations are recomputed. auto does so only if the job does not fit otherwise."
    )
    tokens_per_second: int | None = Field(
        None, description="Tokens per second of all GPUs of the job, if every row is full."
    )
    seconds: int | None = Field(None, description="Time of all steps. Unset if their number is unknown.")
    cost: float | None = Field(
        None, description="Price of this time for all GPUs of the job. Unset if no price was given."
    )


class ChangeEstimate(Model):
    """A change that needs less memory, on top of the changes before it in the list."""

    fields: dict[str, Any] = Field(description="Fields of the job with their new values.")
    effect: str = Field(description="What else it changes.")
    bytes: int = Field(description="Memory that the job then needs.")
    fits: list[str] = Field(description="GPUs of the table on which the job then fits, tight ones included.")


class JobEstimate(Model):
    """What a FineTuneJob needs, from its spec and the model's config.json alone."""

    model: str = Field(description="Address of the base model.")
    model_type: str = Field(description="Its architecture, as config.json names it.")
    method: str = Field(description="The method, as spec.method names it.")
    trainable_parameters: int = Field(description="Parameters that are trained, as PEFT counts them.")
    total_parameters: int = Field(description="Parameters of base and adapter, as PEFT counts them.")
    memory: MemoryEstimate = Field(description="Memory on one GPU.")
    gpus: list[GpuEstimate] = Field(description="The table of GPUs, the smallest first.")
    comparison_bytes: int | None = Field(
        None, description="Memory that full fine-tuning needs. Only with spec.evaluation.compareWithFull."
    )
    tokens_per_step: int = Field(description="Tokens of one optimizer step, if every row is full.")
    total_steps: int | None = Field(None, description="Optimizer steps. Unset if the number of rows is unknown.")
    changes: list[ChangeEstimate] = Field(
        description="Changes that need less memory, the cheapest first. For one GPU, only those needed to fit on it."
    )
    assumptions: list[str] = Field(description="What the estimate assumes.")


def estimate(
    spec: FineTuneJobSpec,
    config: Config,
    *,
    rows: int | None = None,
    tokens: int | None = None,
    gpu: Gpu | None = None,
    price_per_hour: float | None = None,
) -> JobEstimate:
    """Estimate what a job needs.

    Args:
        spec: The job's spec.
        config: The model's config.json.
        rows: Rows of the dataset, if known.
        tokens: Tokens to train on, if known.
        gpu: The GPU to estimate for. None: all GPUs of the table.
        price_per_hour: Price of one such GPU.

    Raises:
        UnknownArchitectureError: There is no closed form for the model.
        TargetError: The model has no module of a name that the method adapts.
        NotCountedError: There is no closed form for the method on this model.
    """
    architecture = architecture_of(config)
    training_rows, rows_assumption = _count_training_rows(spec, rows, tokens)
    if open_batch := spec.training.leaves_batch_open and spec.resources.gpus_per_node > 0:
        spec = _choose_batch(spec, architecture, gpu, training_rows)
    if gpu is not None:
        spec = resolve_checkpointing(spec, architecture, gpu.bytes)
    counts = count(model_of(spec.objective, architecture), method_of(spec.objective, spec.method))
    processes = spec.resources.processes
    memory_parts = job_memory(architecture, spec)
    steps = total_steps(spec.training, training_rows, processes)
    gpus = GPUS if gpu is None else (gpu,)
    proposed = propose_changes(architecture, spec)
    full = full_memory(architecture, spec).total if spec.evaluation.compare_with_full else None
    return JobEstimate(
        model=spec.model.uri,
        model_type=architecture.model_type,
        method=spec.method.name,
        trainable_parameters=counts.trainable,
        total_parameters=counts.total,
        memory=MemoryEstimate.model_validate(memory_parts, from_attributes=True),
        gpus=[
            _estimate_gpu(
                resolve_checkpointing(spec, architecture, item.bytes), architecture, item, steps, price_per_hour
            )
            for item in gpus
        ],
        comparison_bytes=full,
        tokens_per_step=tokens_per_step(spec.training, processes, spec.objective),
        total_steps=steps,
        changes=[_describe_change(change, gpus) for change in _select_needed(memory_parts, proposed, gpu)],
        assumptions=[
            *_list_assumptions(spec, memory_parts),
            *([_explain_batch(spec)] if open_batch else []),
            *_describe_comparison(full, gpus),
            rows_assumption,
        ],
    )


def _choose_batch(
    spec: FineTuneJobSpec, architecture: Architecture, gpu: Gpu | None, rows: int | None
) -> FineTuneJobSpec:
    """Choose the batch as the trainer does for a GPU; for all GPUs of the table the smallest micro-step."""
    sequences = choose_sequences(spec, MANY_ROWS if rows is None else rows)
    per_gpu = sequences // spec.resources.processes
    size = smallest_batch(spec) if gpu is None else choose_micro_step(spec, architecture, gpu.bytes, per_gpu).sequences
    return spec.model_copy(update={"training": split_step(spec.training, size, per_gpu)})


def _explain_batch(spec: FineTuneJobSpec) -> str:
    """Return a sentence about the batch that the spec leaves to the trainer."""
    training = spec.training
    packing = "" if spec.objective != "sft" or training.packing is not None else " Short examples are packed as well."
    return (
        f"perDeviceBatchSize and gradientAccumulationSteps are unset: they are {training.batch_size} and "
        f"{training.accumulation_steps} here, and the trainer chooses them for its GPU and its data.{packing}"
    )


def fits(needed: int, gpu: Gpu) -> Fits:
    """Return whether this many bytes fit on a GPU."""
    return "yes" if needed <= TIGHT * gpu.bytes else "tight" if needed <= gpu.bytes else "no"


def _select_needed(parts: Memory, proposed: list[Change], gpu: Gpu | None) -> list[Change]:
    """Return all changes or, for one GPU, as many as it takes to fit on it."""
    if gpu is None:
        return proposed
    needs = [parts.total, *(change.bytes for change in proposed)]
    return proposed[: next((number for number, needed in enumerate(needs) if fits(needed, gpu) == "yes"), len(needs))]


def _estimate_gpu(
    spec: FineTuneJobSpec, architecture: Architecture, gpu: Gpu, steps: int | None, price: float | None
) -> GpuEstimate:
    number = spec.resources.processes
    needed = job_memory(architecture, spec).total
    speed_per_gpu = tokens_per_second(architecture, spec.method, spec.training, gpu, spec.objective)
    speed = None if speed_per_gpu is None else number * speed_per_gpu
    tokens = tokens_per_step(spec.training, number, spec.objective)
    seconds = None if speed is None or steps is None else round(steps * tokens / speed)
    return GpuEstimate(
        name=gpu.name,
        bytes=gpu.bytes,
        fits=fits(needed, gpu),
        gradient_checkpointing=spec.training.gradient_checkpointing == "always",
        tokens_per_second=None if speed is None else round(speed),
        seconds=seconds,
        cost=None if price is None or seconds is None else round(number * seconds / 3600 * price, 2),
    )


def _describe_change(change: Change, gpus: tuple[Gpu, ...]) -> ChangeEstimate:
    names = [gpu.name for gpu in gpus if fits(change.bytes, gpu) != "no"]
    return ChangeEstimate(fields=change.fields, effect=change.effect, bytes=change.bytes, fits=names)


def _count_training_rows(spec: FineTuneJobSpec, rows: int | None, tokens: int | None) -> tuple[int | None, str]:
    """Return the rows of an epoch, None if unknown, and a sentence that says how they were counted."""
    training = spec.training
    if training.max_steps is not None:
        return None, "maxSteps sets the number of steps."
    if tokens is not None:
        full = packed_rows(tokens, training)
        return full, f"{tokens} tokens fill {full} rows: the dataset is plain text, or is packed without loss."
    if training.packs:
        return None, "The number of steps is unknown: give --tokens, or set spec.training.maxSteps."
    if rows is None:
        return None, "The number of steps is unknown: give --rows, or set spec.training.maxSteps."
    used = min(rows, spec.dataset.max_samples or rows)
    held_out = held_out_rows(used, spec.dataset)
    return used - held_out, f"{held_out} of {used} rows are held out, and no row is left out as empty."


def _describe_comparison(needed: int | None, gpus: tuple[Gpu, ...]) -> list[str]:
    """Return a sentence about the memory of the comparison with full fine-tuning; none without a comparison."""
    if needed is None:
        return []
    names = [gpu.name for gpu in gpus if fits(needed, gpu) != "no"]
    verdict = f"fits on {', '.join(names)}" if names else "fits on none of these GPUs"
    return [
        f"compareWithFull: full fine-tuning needs {needed / GIB:.1f} GiB and {verdict}. If it does not fit, the report "
        "says so, and the adapter is published without it. Its time is not in the table."
    ]


def _list_assumptions(spec: FineTuneJobSpec, parts: Memory) -> list[str]:
    training = spec.training
    assumptions = ["The memory is calculated; it has not been compared with a peak measured on a GPU yet."]
    rows = "Every row has" if PASSES[spec.objective].sequences == 1 else "Both answers of a row have, with the prompt,"
    assumptions.append(f"{rows} maxLength {training.max_length} tokens: shorter ones need less memory and time.")
    if parts.verification > parts.total:
        assumptions.append(
            "The verification needs more memory than the training. If the GPU has less, the CPU verifies, which takes "
            "longer."
        )
    if training.gradient_checkpointing == "auto":
        assumptions.append(
            "gradientCheckpointing auto is off in this memory, and on for each GPU of the table that is too small "
            "without it."
        )
    if training.precision == "auto":
        assumptions.append("precision auto is bf16, or fp16 on a GPU that has no bf16.")
    if not spec.resources.gpus_per_node:
        assumptions.append(
            "resources.gpusPerNode is 0: memory and time are those of a GPU, not of the CPU that the job asks for."
        )
    if spec.resources.processes > 1:
        holds = "hold the whole model" if training.sharding == "none" else "share the base's layers"
        assumptions.append(
            f"Memory is that of each of the {spec.resources.processes} GPUs, which {holds}; "
            "communication between GPUs takes no time."
        )
    if training.precision == "fp32":
        assumptions.append("There is no estimate of the time in fp32.")
    else:
        speed = f"The GPU reaches {UTILISATION:.0%} of its dense bf16 speed"
        slower = f", and {QUANTISED_SPEED:.0%} of that with a quantised base" if spec.method.quantization else ""
        assumptions.append(f"{speed}{slower}; loading, evaluation and uploads are not in the time.")
    return assumptions
