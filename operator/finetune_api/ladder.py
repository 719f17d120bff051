"""What is changed in a job that ran out of memory: one step of a ladder each time, none of which changes how many sequences an optimizer step has."""

from collections.abc import Iterator
from typing import Any

from finetune_api import combinations
from finetune_api.finetunejob import Adjustment, FineTuneJobSpec
from finetune_api.methods import Dora, Lora, Method, Qlora, Quantization
from finetune_api.reasons import Reason


def mends(spec: FineTuneJobSpec, reason: str) -> bool:
    """Whether less memory of the device is what an attempt that ended for this reason needs. Without a GPU the container's memory is the device's."""
    return reason == Reason.OUT_OF_MEMORY or (reason == Reason.HOST_OUT_OF_MEMORY and spec.resources.gpus_per_node == 0)


def adjusted(spec: FineTuneJobSpec, times: int) -> FineTuneJobSpec | None:
    """The spec after this many steps; None if the ladder has fewer."""
    for _ in range(times):
        following = _next(spec)
        if following is None:
            return None
        spec = following
    return spec


def adjustments(spec: FineTuneJobSpec, changed: FineTuneJobSpec) -> list[Adjustment]:
    """What the ladder has changed in a spec."""
    return [
        Adjustment(field=field, before=before, after=after)
        for (field, before), (_, after) in zip(_touched(spec), _touched(changed), strict=True)
        if before != after
    ]


def at_its_end(spec: FineTuneJobSpec, times: int) -> str:
    """Why there is no step after this many, and what is left to the user."""
    last = spec
    for _ in range(times):
        last = _next(last) or last
    state = ", ".join(f"{field} is {value}" for field, value in _touched(last))
    policy = spec.failure_policy.out_of_memory
    off = [
        name
        for name, allowed in (
            ("reduceBatchSize", policy.reduce_batch_size),
            ("enableGradientCheckpointing", policy.enable_gradient_checkpointing),
            ("quantize", policy.quantize),
        )
        if not allowed
    ]
    remedy = f"allow {', '.join(off)} in failurePolicy.outOfMemory, " if off else ""
    return f"there is nothing left that could be made smaller ({state}): {remedy}lower training.maxLength, or give it a device with more memory"


def _next(spec: FineTuneJobSpec) -> FineTuneJobSpec | None:
    """The spec after the first step that it does not have behind it; None after the last."""
    return next(_steps(spec), None)


def _steps(spec: FineTuneJobSpec) -> Iterator[FineTuneJobSpec]:
    policy, training = spec.failure_policy.out_of_memory, spec.training
    if policy.reduce_batch_size and (batch := _smaller(training.per_device_batch_size, spec.objective)):
        more = training.gradient_accumulation_steps * training.per_device_batch_size // batch
        yield _with(spec, training={"per_device_batch_size": batch, "gradient_accumulation_steps": more})
    if policy.enable_gradient_checkpointing and training.gradient_checkpointing != "always":
        changed = _with(spec, training={"gradient_checkpointing": "always"})
        if combinations.allows(changed):
            yield changed
    if policy.quantize and (method := _quantised(spec.method)):
        changed = spec.model_copy(update={"method": method})
        if combinations.allows(changed):
            yield changed


def _smaller(batch: int, objective: str) -> int | None:
    """The largest divisor of a batch that is at most half of it: accumulation can make up for it exactly. kto compares the rows of a batch: it needs two."""
    least = 2 if objective == "kto" else 1
    return next((size for size in range(batch // 2, least - 1, -1) if batch % size == 0), None)


def _quantised(method: Method) -> Method | None:
    """The same adapter on a base in 4 bits; None where there is none, or it is already."""
    block = method.config
    if isinstance(block, Lora) and block.init not in ("pissa", "olora"):
        return Method(qlora=Qlora.model_validate(block.model_dump()))
    if isinstance(block, Dora) and block.quantization is None:
        return Method(dora=block.model_copy(update={"quantization": Quantization()}))
    return None


def _with(spec: FineTuneJobSpec, training: dict[str, Any]) -> FineTuneJobSpec:
    return spec.model_copy(update={"training": spec.training.model_copy(update=training)})


def _touched(spec: FineTuneJobSpec) -> list[tuple[str, str]]:
    """The fields that the ladder may change, and their values as they are written in YAML."""
    training, quantization = spec.training, spec.method.quantization
    return [
        ("training.perDeviceBatchSize", str(training.per_device_batch_size)),
        ("training.gradientAccumulationSteps", str(training.gradient_accumulation_steps)),
        ("training.gradientCheckpointing", training.gradient_checkpointing),
        ("method.quantization", quantization.type if quantization else "none"),
    ]
